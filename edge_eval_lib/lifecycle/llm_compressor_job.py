"""Quantises one model with llm-compressor: `python -I llm_compressor_job.py JOB.json`.

It runs in llm-compressor's own environment, where nothing else of this project is installed; see
llm_compressor.py. JOB.json holds `model`, `target` (directories), `scheme` (W8A8, W4A16, ...),
`group_sizes` (of weights that share a scale, W4A16) and `calibration` (lists of token ids, or null:
rounding to nearest). The names of the layers that were
to be quantised go to layers.json beside it.
"""

import json
import sys
from pathlib import Path


def main() -> None:
    """Quantise one directory of weights as the arguments say."""
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM

    job_file = Path(sys.argv[1])
    job = json.loads(job_file.read_text(encoding="utf-8"))
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(
        job["model"],
        dtype=torch.float16 if device != "cpu" else torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        device_map=device,
    )
    linear = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    head = [name for name, module in linear.items() if module is model.get_output_embeddings()]
    layers = {name: module for name, module in linear.items() if name not in head}
    settings = {"ignore": head, **scheme(job, [m.in_features for m in layers.values()])}
    if job["calibration"] is None:
        oneshot(model=model, recipe=QuantizationModifier(**settings), trust_remote_code_model=False)
    else:
        rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in job["calibration"]]
        oneshot(
            model=model,
            recipe=GPTQModifier(**settings),
            trust_remote_code_model=False,
            dataset=Dataset.from_list(rows),
            num_calibration_samples=len(rows),
            shuffle_calibration_samples=False,
            max_seq_length=max(len(ids) for ids in job["calibration"]),
        )
    model.to(torch.float16)  # what is not quantised, and the scales
    model.save_pretrained(job["target"], save_compressed=True)
    job_file.with_name("layers.json").write_text(json.dumps(sorted(layers)), encoding="utf-8")


def scheme(job, inputs):
    """Return a modifier's settings of a scheme, for layers with that many inputs each."""
    if job["scheme"] != "W4A16":
        return {"targets": ["Linear"], "scheme": job["scheme"]}
    sizes = sorted(job["group_sizes"], reverse=True)
    group_size = next((g for g in sizes if all(n % g == 0 for n in inputs)), None)
    if group_size is None:
        raise SystemExit(
            f"the layers have {sorted(set(inputs))} inputs: no group of {sizes[-1]} divides them"
        )
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group"}
    group = {"targets": ["Linear"], "weights": weights | {"group_size": group_size}}
    return {"config_groups": {"group_0": group}}


if __name__ == "__main__":
    main()
