"""Where weights come from, and how a stage loads them.

Weights are read from safetensors only and no code that comes with a model is ever executed.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_eval_lib.errors import UserError
from edge_eval_lib.study import Model, outputs_root, project_root, read_yaml

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from edge_eval_lib.tasks import Example

HUB_FILES = ("*.safetensors", "*.json", "tokenizer*", "*.model", "merges.txt", "vocab*", "*.jinja")
HUB_PATIENCE_S = 10.0
# The tokenizer of models with random weights.
LARGEST_TOKENIZER = 8192
ROLE_TOKENS = ["<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@contextmanager
def published_directory(target: Path) -> Iterator[Path]:
    """A temporary directory that takes the name `target` only when the body succeeded."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield temporary
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def model_directory(model: Model) -> Path:
    """A local directory with the model's safetensors, configuration and tokenizer.

    Source `package` is converted once from the GGUF file that an installed package carries (FP16
    of its dequantised weights); `hub` is downloaded at its revision, with the token from HF_TOKEN
    if one is needed; `local` is checked and used as it is; `random` is made once from its config.
    Raises UserError if it is not there.
    """
    return {
        "package": _from_package,
        "local": _from_local,
        "hub": _from_hub,
        "random": _from_config,
    }[model.source](model)


def _from_local(model: Model) -> Path:
    directory = Path(model.location)
    if not (directory / "config.json").is_file() or not any(directory.glob("*.safetensors")):
        raise UserError(
            f"Model {model.name}: {directory} must hold config.json, a tokenizer and *.safetensors."
        )
    return directory


def _from_hub(model: Model) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if model.gated and not os.environ.get("HF_TOKEN"):
        raise UserError(
            f"Model {model.name}: {model.location} is gated; accept its licence on the hub and set "
            "the environment variable HF_TOKEN."
        )
    try:
        path = snapshot_download(
            model.location, revision=model.revision, allow_patterns=list(HUB_FILES)
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"Model {model.name}: {model.location} at revision {model.revision} cannot be had from "
            f"the hub ({type(error).__name__}); check the name, the revision and the network."
        ) from error
    return Path(path)


def hub_problem(model: Model) -> str | None:
    """Why a hub model cannot be had, in a sentence; None if it can, or lies here already."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(
        try_to_load_from_cache(model.location, "config.json", revision=model.revision), str
    ):
        return None
    where = f"Model {model.name}: the hub"
    known = read_yaml(project_root() / "params" / "shapes.yaml")
    near = [] if model.location in known else difflib.get_close_matches(model.location, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    try:
        HfApi().model_info(model.location, revision=model.revision, timeout=HUB_PATIENCE_S)
        if model.gated:
            HfApi().auth_check(model.location)
    except GatedRepoError:
        return (
            f"{where} has not granted {model.location} to your HF_TOKEN; accept its licence there."
        )
    except RevisionNotFoundError:
        return f"{where} has {model.location}, but no revision {model.revision} of it."
    except (RepositoryNotFoundError, ValueError):
        return f"{where} has no {model.location!r}{hint or '; correct its location.'}"
    except Exception as error:  # of whichever HTTP library the hub's client is made with
        return f"{where} cannot be reached for {model.location!r} ({type(error).__name__})" + (
            hint or "; check the network, or take a -random model of params/models.yaml."
        )
    return None


def _from_package(model: Model) -> Path:
    target = outputs_root() / "models" / f"{model.name}-{model.revision}"
    if target.is_dir():
        return target
    package, _, file_name = model.location.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"Model {model.name}: the package {package!r} is not installed; run make setup."
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    if not (folder / file_name).is_file():
        raise UserError(f"Model {model.name}: the package {package!r} has no file {file_name!r}.")

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with published_directory(target) as directory:
        weights = AutoModelForCausalLM.from_pretrained(
            folder,
            gguf_file=file_name,
            quantization_config=GgufConfig(gguf_file=file_name, dequantize=True),
            dtype=torch.float16,
        )
        weights.hf_quantizer = None  # or save_pretrained would try to write GGUF
        weights.save_pretrained(directory)
        AutoTokenizer.from_pretrained(folder, gguf_file=file_name).save_pretrained(directory)
    return target


def _from_config(model: Model) -> Path:
    identity = hashlib.sha256(json.dumps(model.config, sort_keys=True).encode()).hexdigest()[:8]
    target = outputs_root() / "models" / f"{model.name}-random-{identity}"
    if not target.is_dir():
        try:
            write_random_model(model.config, target)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"Model {model.name}: transformers makes no model of its config ({error})."
            ) from error
    return target


def write_random_model(config: dict[str, Any], target: Path) -> Path:
    """A model of that shape with random FP16 weights, and a tokenizer, in `target`.

    `config` holds fields of transformers' configuration class for its `model_type`. Everything is
    real but what the weights know: speed, memory and energy are those of the shape; answers mean
    nothing. The tokenizer is a byte-level BPE of at most 8192 tokens trained on the texts of the
    embedded tasks, so that prompts take some more tokens than under the model's own.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {name: value for name, value in config.items() if name != "model_type"}
    tokenizer = _train_tokenizer(min(LARGEST_TOKENIZER, shape.get("vocab_size", LARGEST_TOKENIZER)))
    specials = {
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    built = AutoConfig.for_model(config["model_type"], **{**shape, **specials})
    torch.manual_seed(0)
    with torch.device(default_device()):
        weights = AutoModelForCausalLM.from_config(built, dtype=torch.float16)
    with published_directory(target) as directory:
        weights.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    return target


def _train_tokenizer(vocabulary_size: int) -> PreTrainedTokenizerBase:
    """A chat tokenizer made from the texts that come with this project."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=ROLE_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (
        str(value)
        for file in sorted(resources.files("edge_eval_lib.tasks").joinpath("data").iterdir())
        if file.name.endswith(".jsonl")
        for line in file.read_text(encoding="utf-8").splitlines()
        for value in json.loads(line).values()
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|pad|>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory, padding on the left as batched generation needs."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="left")
    if tokenizer.chat_template is None:
        raise UserError(f"{directory} has no chat template; an instruction-tuned model is needed.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    directory: Path, compute_dtype: str, quantization: Any = None, on_cpu: bool = False
) -> PreTrainedModel:
    """A causal language model on the GPU if there is one, else on the CPU, ready to run.

    Where the GPUs that the runner left visible cannot hold it, the rest waits in host memory.
    `quantization` is None, or a transformers quantisation configuration for weights that are to be
    quantised while they load; a directory that holds quantised weights needs none.
    """
    import torch
    import transformers
    from transformers import AutoModelForCausalLM

    transformers.utils.logging.disable_progress_bar()  # a bar a tensor drowns a notebook
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # INT8 warns at every product
    # Naming it at all, even as None, would hide what a quantised directory says of itself.
    asked = {} if quantization is None else {"quantization_config": quantization}
    return AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=getattr(torch, compute_dtype),
        use_safetensors=True,
        device_map="cpu" if on_cpu or default_device() == "cpu" else "auto",
        **asked,
    )


def default_device() -> str:
    """`cuda:0` where the runner left a GPU visible, else `cpu`."""
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"


def free_device_bytes() -> int | None:
    """Free memory of the GPU that loading uses first; None where there is no GPU."""
    import torch

    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> list[int]:
    """Token ids of a chat up to where the assistant begins to answer."""
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def answer_ids(tokenizer: PreTrainedTokenizerBase, answer: str) -> list[int]:
    """Token ids of an answer, its end-of-sequence token included."""
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return [*ids, tokenizer.eos_token_id]


def count_tokens(tokenizer: PreTrainedTokenizerBase, example: Example) -> int:
    """Tokens of an example's prompt and answer together."""
    prompt = prompt_ids(tokenizer, example.messages)
    return len(prompt) + len(answer_ids(tokenizer, example.answer))


def executed_dtype(model: PreTrainedModel) -> str:
    """The arithmetic that the model's linear layers really execute, found by measuring one.

    Compares the first linear layer's output with the same product in float64 and reads
    the type off the relative error: 4-bit layers may compute in another type than they are told
    (bitsandbytes uses bfloat16 in evaluation mode on CPUs that have it). INT8 layers quantise
    their input, which is told as `int8`.
    """
    import torch

    name, layer = next(
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "lora_" not in name
    )
    kind, weight = type(layer).__name__, layer.weight
    if kind == "Linear8bitLt":
        return "int8"
    if kind == "Linear4bit":
        import bitsandbytes as bnb

        if getattr(weight, "quant_state", None) is None:
            raise ValueError(f"{name} is not quantised yet")
        if getattr(weight.quant_state, "packing_format_for_cpu", False):
            return "bfloat16"  # the packed layout is read by the bfloat16 kernel alone
        weight = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(16, layer.in_features, generator=generator).to(weight.device)
    probe = probe.to(next(p.dtype for p in model.parameters() if p.is_floating_point()))
    with torch.no_grad():
        measured = layer(probe).double()
        exact = probe.double() @ weight.double().reshape(layer.out_features, -1).T
        if layer.bias is not None:
            exact = exact + layer.bias.double()
    return dtype_of_error(float((measured - exact).norm() / exact.norm()))


def dtype_of_error(relative_error: float) -> str:
    """The floating-point type whose rounding explains a product's relative error.

    Rounding to a type of unit roundoff u leaves a relative error of the order u: 6e-8 for
    float32, 4.9e-4 for float16, 3.9e-3 for bfloat16.
    """
    for dtype, bound in (("float32", 5e-6), ("float16", 9e-4), ("bfloat16", 1e-2)):
        if relative_error < bound:
            return dtype
    return "unknown"
