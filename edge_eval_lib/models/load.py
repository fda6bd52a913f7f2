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
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_eval_lib.errors import UserError
from edge_eval_lib.models import weights
from edge_eval_lib.paths import outputs_root, project_root
from edge_eval_lib.study import Model, Study, read_yaml

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
    if one is needed; `local` is used as it is; `random` is made once from its config. What was made
    here and is damaged is made again. Raises UserError if it is not there, or if its weights are
    not whole (`require_whole`).
    """
    with of_model(model):
        directory = {
            "package": _from_package,
            "local": _from_local,
            "hub": _from_hub,
            "random": _from_config,
        }[model.source](model)
        require_whole(directory)
    return directory


@contextmanager
def of_model(model: Model) -> Iterator[None]:
    """Says of a UserError in the body which model it is about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"Model {model.name}: {error}") from error


def require_whole(directory: Path) -> None:
    """UserError unless a directory's weights, configuration and tokenizer make one model.

    Every tensor that the configuration asks for must be there, in its shape, and no other; every
    value must be a number; the tokenizer's tokens must have an embedding. Found out once, outside
    every measured window, and remembered as long as the files stay (weights.remember).
    """
    weights.require_sound(directory)
    if weights.is_known(directory, "whole"):
        return
    if "quantization_config" in weights.read_config(directory):
        raise UserError(f"{directory} is quantised already; give the unquantised weights.")
    weights.require_vocabulary(directory)
    if "torch" in sys.modules:
        _require_complete(directory)
    else:  # neither planning nor a process that will load from cold may import it
        command = [sys.executable, "-m", "edge_eval_lib.models.load", str(directory)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            raise UserError(lines[-1] if lines else f"{directory} cannot be checked.")
    weights.remember(directory, "whole")


def _require_complete(directory: Path) -> None:
    """Load the weights without their values, which takes no memory."""
    model = _load(directory, dtype="auto", device_map="meta")
    declared = (weights.read_config(directory).get("architectures") or [""])[0]
    built = type(model).__name__
    if declared.endswith("ForCausalLM") and declared.casefold() != built.casefold():
        raise UserError(
            f"{directory}/config.json declares {declared}, but its model_type is that of {built}."
        )


def weights_here(model: Model) -> Path | None:
    """Where a model's weights lie already, without downloading, converting or making anything.

    Raises UserError for a local directory or a package that lacks what is needed.
    """
    if model.source == "local":
        return _from_local(model)
    if model.source == "hub":
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(model.location, "config.json", revision=model.revision)
        directory = Path(cached).parent if isinstance(cached, str) else None
    elif model.source == "package":
        directory = _converted(model)
        if not directory.is_dir():
            package_file(model)
    else:
        directory = None
    # What lies in a cache or was made here and is damaged is fetched or made again.
    return directory if directory is not None and weights.is_readable(directory) else None


def weight_problems(study: Study) -> list[str]:
    """What the headers of the weights that lie here already tell against a study, a sentence each.

    Reads no values and imports no torch: milliseconds a model.
    """
    found = []
    for model in study.models:
        variants = [variant for variant in study.variants() if variant.model == model.name]
        try:
            with of_model(model):
                directory = weights_here(model)
                if directory is None:
                    continue
                tensors = weights.read_tensors(directory)
                weights.require_vocabulary(directory)
        except UserError as error:
            why = str(error)
            found.append(f"{variants[0]} cannot run: {why[0].lower()}{why[1:]}")
            continue
        layers, wanted = weights.linear_layers(tensors), study.training.target_modules
        wrong = weights.contradiction(tensors, model.parameters, model.nominal_gb)
        if wrong:
            found.append(f"Model {model.name}: {wrong}.")
        adapted = next((variant for variant in variants if variant.method != "none"), None)
        lacking = None if wanted == "all-linear" else weights.lacking_modules(layers, wanted)
        if adapted is not None and lacking:
            found.append(f"{adapted} cannot be adapted: {lacking}.")
        int4 = next((v for v in variants if v.precision == "int4" and v.method != "none"), None)
        if int4 is not None and (why := _not_int4(study, layers)):
            found.append(f"{int4} cannot be compressed: {why}; leave int4 out for this model.")
    return found


def _not_int4(study: Study, layers: dict[str, tuple[int, int]]) -> str | None:
    """Why the engine's INT4 cannot be made of layers of these shapes; None if it can."""
    if study.workload.engine == "vllm":
        name = weights.ungrouped(layers)
        return name and (
            f"{name} has {layers[name][1]} inputs, which no group of {weights.GROUP_SIZE} divides"
        )
    share = weights.nf4_share(layers) if layers else 0.0
    if share <= weights.INT4_LARGEST_SHARE:
        return None
    return (
        f"its layers are so small that as NF4 they take {share:.2f} of their FP16 bytes, more than "
        f"{weights.INT4_LARGEST_SHARE}"
    )


def _from_local(model: Model) -> Path:
    directory = Path(model.location)
    if not (directory / "config.json").is_file():
        raise UserError(f"{directory} must hold config.json, a tokenizer and *.safetensors.")
    return directory


def _from_hub(model: Model) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if model.gated and not os.environ.get("HF_TOKEN"):
        raise UserError(
            f"{model.location} is gated; accept its licence on the hub and set "
            "the environment variable HF_TOKEN."
        )
    try:
        path = snapshot_download(
            model.location, revision=model.revision, allow_patterns=list(HUB_FILES)
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{model.location} at revision {model.revision} cannot be had from "
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
    target = _converted(model)
    if weights.is_sound(target):
        return target
    file = package_file(model)

    import torch
    from transformers import AutoTokenizer, GgufConfig

    with published_directory(target) as directory:
        base = _load(
            file.parent,
            gguf_file=file.name,
            quantization_config=GgufConfig(gguf_file=file.name, dequantize=True),
            dtype=torch.float16,
        )
        base.hf_quantizer = None  # or save_pretrained would try to write GGUF
        base.save_pretrained(directory)
        AutoTokenizer.from_pretrained(
            file.parent, gguf_file=file.name, trust_remote_code=False
        ).save_pretrained(directory)
    return target


def _converted(model: Model) -> Path:
    return outputs_root() / "models" / f"{model.name}-{model.revision}"


def package_file(model: Model) -> Path:
    """The GGUF file of a model that an installed package carries; UserError if it is not there."""
    package, _, file_name = model.location.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the package {package!r} is not installed; run make setup.")
    file = Path(next(iter(spec.submodule_search_locations))) / file_name
    if not file.is_file():
        raise UserError(f"the package {package!r} has no file {file_name!r}.")
    return file


def _from_config(model: Model) -> Path:
    identity = hashlib.sha256(json.dumps(model.config, sort_keys=True).encode()).hexdigest()[:8]
    target = outputs_root() / "models" / f"{model.name}-random-{identity}"
    if not weights.is_sound(target):
        import torch

        try:
            write_random_model(model.config, target)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # as in _load
            raise UserError(f"transformers makes no model of its config ({error}).") from error
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
        model = AutoModelForCausalLM.from_config(
            built, dtype=torch.float16, trust_remote_code=False
        )
    with published_directory(target) as directory:
        model.save_pretrained(directory)
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

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            directory, padding_side="left", trust_remote_code=False
        )
    except Exception as error:  # as in _load
        raise UserError(f"{directory} has no tokenizer that loads ({_said(error)}).") from error
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
    quantised while they load; a directory that holds quantised weights needs none. Raises UserError
    for weights that are not what the configuration asks for, and for a layer that bitsandbytes left
    unquantised. 4-bit layers compute in the type that they are told (`compute_as_told`).
    """
    import torch

    # Naming it at all, even as None, would hide what a quantised directory says of itself.
    asked = {} if quantization is None else {"quantization_config": quantization}
    model = _load(
        directory,
        dtype=getattr(torch, compute_dtype),
        device_map="cpu" if on_cpu or default_device() == "cpu" else "auto",
        **asked,
    )
    compute_as_told(model)
    return model


def quieten() -> None:
    """Keep libraries from filling a notebook with what this project checks or does without."""
    for name in (
        "bitsandbytes",  # INT8 warns at every product, and CPUs of kernels that nobody installed
        "transformers.modeling_utils",  # its report of missing tensors: `_load` raises
        "transformers.distributed.tensor_parallel",  # layers that one device does not divide
    ):
        logging.getLogger(name).setLevel(logging.ERROR)


def _load(directory: Path, **options: Any) -> PreTrainedModel:
    """from_pretrained, which initialises afresh what it does not find, and says so in passing: here
    whatever is missing, beyond the model or of another shape is a UserError that names it."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM

    transformers.utils.logging.disable_progress_bar()  # a bar a tensor drowns a notebook
    quieten()
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            directory,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told below, with their names
            **options,
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of a configuration or a file that no library class foresaw
        raise UserError(f"{directory}: transformers does not load it ({_said(error)}).") from error
    differing = {
        f"{name} ({list(stored)} instead of {list(asked)})"
        for name, stored, asked in found["mismatched_keys"]
    }
    told = difference(found["missing_keys"], found["unexpected_keys"], differing)
    if told:
        raise UserError(
            f"{directory}: the weights are not those of the {type(model).__name__} that "
            f"config.json describes: {told}."
        )
    return model


def _said(error: Exception) -> str:
    """What an error of a library says, on one line."""
    return " ".join(str(error).split())[:300]


def difference(missing: set[str], unexpected: set[str], differing: set[str]) -> str:
    """What keeps weights from being those of a model, in words; empty if nothing does."""
    told = {"missing": missing, "not the model's": unexpected, "of another shape": differing}
    return "; ".join(
        f"{what}: {min(names)}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        for what, names in told.items()
        if names
    )


def compute_as_told(model: PreTrainedModel) -> None:
    """Have 4-bit layers compute in their compute dtype, whatever the processor has.

    On a CPU with AVX512-BF16, bitsandbytes packs a 4-bit layer for a bfloat16 kernel when it is
    first used for inference: it then computes in bfloat16 whatever its compute dtype is, has its
    scales rounded to bfloat16, and fails for layers of other than a multiple of 32 outputs and of
    64 inputs. A layer asks its attribute `support_avx512bf16_for_cpu` whether to; it is left on
    only where bfloat16 is what was asked for. UserError for a layer that is not wholly quantised.
    """
    import torch

    for name, layer in model.named_modules():
        if type(layer).__name__ not in ("Linear4bit", "Linear8bitLt"):
            continue
        outputs, inputs = layer.out_features, layer.in_features
        if type(layer).__name__ == "Linear8bitLt":
            quantised = layer.weight.dtype == torch.int8 and layer.weight.SCB is not None
            shape = layer.weight.shape
        else:
            state = getattr(layer.weight, "quant_state", None)
            # Scales that are quantised themselves need what they were quantised with.
            quantised = state is not None and state.nested == (state.absmax.dtype == torch.uint8)
            shape = state.shape if quantised else None
            packable = outputs % 32 == 0 and inputs % 64 == 0
            if layer.compute_dtype != torch.bfloat16 or not packable:
                layer.support_avx512bf16_for_cpu = False
        if not quantised or tuple(shape) != (outputs, inputs):
            raise UserError(
                f"{name} ({outputs} x {inputs}) is not a whole layer quantised by bitsandbytes; "
                "compress the model again, or leave this precision out."
            )
    vocabulary = model.config.get_text_config().vocab_size
    if len(model.get_input_embeddings().weight) != vocabulary:  # not told of quantised weights
        raise UserError(
            f"The embedding has {len(model.get_input_embeddings().weight)} tokens, but config.json "
            f"says {vocabulary}."
        )


def require_logits(model: PreTrainedModel, name: str) -> None:
    """UserError unless the model's logits of four tokens are numbers: a forward pass, milliseconds
    beside loading the model."""
    import torch

    try:
        with torch.inference_mode():
            logits = model(torch.arange(4, device=model.device)[None]).logits
    except (AssertionError, RuntimeError) as error:
        raise UserError(
            f"{name}: the model does not compute with these weights ({_said(error)})."
        ) from error
    if not torch.isfinite(logits).all():
        raise UserError(
            f"{name}: the model's logits are NaN or infinite; its weights overflow "
            f"{str(model.dtype).removeprefix('torch.')}."
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
    (see `compute_as_told`). INT8 layers quantise
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


if __name__ == "__main__":  # for a process that must not import torch: require_whole
    try:
        _require_complete(Path(sys.argv[1]))
    except UserError as error:
        sys.exit(str(error))
