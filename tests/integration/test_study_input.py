"""Whatever stands in a study file: it is accepted, or refused in one sentence, at once."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from ruamel.yaml.nodes import MappingNode, Node

from edge_eval_lib.errors import UserError
from edge_eval_lib.paths import project_root
from edge_eval_lib.study import load_study, read_yaml, yaml_file

PARAMS = project_root() / "params"
STUDIES = sorted(p.stem for p in PARAMS.glob("*.yaml") if "configurations:" in p.read_text())
SECONDS = 2.0  # 0.1 on a quiet machine

NASTY: list[Any] = [
    None,
    "",
    " ",
    "x",
    "x" * 300,
    "x" * 100_000,
    "../../x",
    "naïve 模型 🦙",
    "tab\tand\nline",
    "bell\x07",
    "nul\x00",
    "\ud800",
    "$(touch x)",
    "'; touch x; '",
    "{x}",
    -1,
    0,
    1,
    1.5,
    10**12,
    10**30,
    10**4000,
    -(10**30),
    1e308,
    5e-324,
    math.nan,
    math.inf,
    -math.inf,
    True,
    [],
    {},
    [[]],
    [None],
    {"x": 1},
    {1: 2},
    [{"x": [{}]}],
    ["a", "a"],
    [1, 1],
]


def places(content: Any, at: tuple = ()) -> Iterator[tuple]:
    """The way to every value of a study file; of a list, to its first entry."""
    if at:
        yield at
    items = content.items() if isinstance(content, dict) else enumerate(content[:1])
    for key, value in items:
        yield from places(value, (*at, key)) if isinstance(value, (dict, list)) else [(*at, key)]


def changed(content: dict, at: tuple, value: Any) -> dict:
    content = copy.deepcopy(content)
    inside = content
    for key in at[:-1]:
        inside = inside[key]
    inside[at[-1]] = value
    return content


class Dumper(yaml.SafeDumper):
    """Writes numbers of any size, and repeats rather than refers."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def written(content: Any) -> str:
    text = yaml.dump(content, Dumper=Dumper, sort_keys=False, width=10**9)
    return text.replace("\ud800", "\\ud800")


def whole(study: str) -> dict:
    """A study with its models written out, so that their fields are changed too."""
    content = read_yaml(PARAMS / f"{study}.yaml")
    stanzas = read_yaml(PARAMS / "models.yaml")
    content["models"] = [stanzas[m] if isinstance(m, str) else m for m in content["models"]]
    return content


def own_places() -> dict[str, list[tuple]]:
    """The places of every study that none before it has: each kind of field once."""
    seen: set[tuple] = set()
    own = {}
    for study in STUDIES:
        own[study] = [at for at in places(whole(study)) if at not in seen]
        seen.update(own[study])
    return {study: found for study, found in own.items() if found}


def grafted(node: Node, at: tuple, value: Node) -> Node:
    """What a file would be parsed to that has `value` at that place."""
    if not at:
        return value
    if isinstance(node, MappingNode):
        inside = [(k, grafted(v, at[1:], value) if k.value == at[0] else v) for k, v in node.value]
    else:
        inside = [grafted(v, at[1:], value) if n == at[0] else v for n, v in enumerate(node.value)]
    return type(node)(node.tag, inside, node.start_mark, node.end_mark)


@pytest.mark.parametrize(("study", "own"), own_places().items())
def test_every_value_of_every_field_is_accepted_or_refused_in_one_sentence(
    tmp_path: Path, monkeypatch, study: str, own: list[tuple]
):
    """At the first place as text; at the others the value, parsed once, in the parsed study."""
    content, path, wrong = whole(study), tmp_path / "mine.yaml", []
    parse = yaml_file._composed
    parsed, values = parse(written(content)), [parse(written([v])).value[0] for v in NASTY]
    for at in own:
        for value, node in zip(NASTY, values, strict=True):
            text = written(changed(content, at, value)) if at == own[0] else "grafted"
            graft = grafted(parsed, at, node)
            path.write_text(text, encoding="utf-8")
            monkeypatch.setattr(
                yaml_file, "_composed", lambda t, g=graft: g if t == "grafted" else parse(t)
            )
            case = f"{'.'.join(map(str, at))} = {value!r:.40}"
            began = time.process_time()
            try:
                load_study(path).runs()
            except UserError as error:
                told = str(error)
                if "\n" in told or len(told) >= 400 or not told.isprintable():
                    wrong.append(f"{case}: {told!r:.500}")
                elif not any(str(part) in told for part in at if isinstance(part, str)):
                    wrong.append(f"{case} is not named: {told}")
            except Exception as error:
                wrong.append(f"{case}: {error!r:.200}")
            if time.process_time() - began > SECONDS:
                wrong.append(f"{case} took {time.process_time() - began:.1f} s")
    assert not wrong, "\n".join(wrong[:40])


def refusal(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as refused:
        load_study(path)
    told = str(refused.value)
    assert "\n" not in told
    assert len(told) < 400
    return told.removeprefix(str(path)).lstrip(": ")


def plain(tmp_path: Path, **changes: Any) -> str:
    return yaml.safe_dump(tiny.tiny_study(tmp_path, **changes))


@pytest.mark.parametrize(
    "seed", ["010", "1:30", "0x10", "0b11", "0o17", "1_000", "2024-01-01", "yes", "on", "7 7", "+"]
)
def test_what_only_yaml_1_1_takes_for_a_number_is_none(tmp_path: Path, seed: str):
    told = refusal(tmp_path, plain(tmp_path).replace("seed: 7", f"seed: {seed}"))
    assert told == (f"the field 'seed' is '{seed}', but it should be a whole number, such as 16.")


@pytest.mark.parametrize("word", ["yes", "no", "on", "off", "True", "y", "'true'"])
def test_only_true_and_false_are_booleans(tmp_path: Path, word: str):
    text = plain(tmp_path).replace("checkpointing: false", f"checkpointing: {word}")
    bare = word.strip("'")
    assert refusal(tmp_path, text) == (
        f"the field 'training.gradient_checkpointing' is '{bare}', but it should be true or false."
    )


@pytest.mark.parametrize(
    ("written", "value"), [("1e-3", 1e-3), ("1.5E-3", 1.5e-3), (".5", 0.5), ("2.", 2.0), ("1", 1)]
)
def test_numbers_are_those_of_yaml_1_2(tmp_path: Path, written: str, value: float):
    text = plain(tmp_path).replace("learning_rate: 0.001", f"learning_rate: {written}")
    (tmp_path / "mine.yaml").write_text(text)
    assert load_study(tmp_path / "mine.yaml").training.learning_rate == value


def test_words_and_dates_are_text(tmp_path: Path):
    model = tiny.tiny_study(tmp_path)["models"][0]
    text = plain(tmp_path, models=[model]).replace("revision: none", "revision: 2024-01-01")
    text = text.replace("licence: Apache-2.0", "licence: no")
    (tmp_path / "mine.yaml").write_text(text)
    loaded = load_study(tmp_path / "mine.yaml").models[0]
    assert (loaded.revision, loaded.licence) == ("2024-01-01", "no")


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("seed: 7", "seed: " + "9" * 5000, "the field 'seed' is a number of more than 20 digits"),
        ("seed: 7", "seed: .inf", "the field 'seed' is inf, but it should be a finite number."),
        ("seed: 7", "seed: ~", "the field 'seed' is empty, but it should be a whole number"),
        ("seed: 7", "seed: 1\nseed: 2", "the field 'seed' appears twice"),
        ("seed: 7", "seed: -1", "the field 'seed' is -1, but it should be at least 0."),
        ("seed: 7", "sead: 7", "the field 'seed' is missing."),
        ("prices: paper", "prices: papr", "no set of prices 'papr'; did you mean 'paper'?"),
        ("hardware: this-machine", "hardware: t4x3", "no hardware 't4x3'; did you mean 't4x2'?"),
        ("family: tinyllama", "family: falcon_h1", "(no underscore: it separates the parts"),
        ("family: tinyllama", f"family: {'x' * 300}", "at most 64 characters: it names files"),
        ("name: tiny", f"name: {'x' * 300}", "at most 100 characters: it names files"),
        ("  - 4\n  engine", "  engine", "must contain 4: it is workload.headline_concurrency"),
        ("  - 1\n  - 4\n", "  - 4\n", "workload.concurrency must contain 1: latency is taken at 1"),
        ("repetitions: 1", "repetitions: 1000000000", "'repetitions' is 1000000000, but it should"),
        ("precision: int8", "precision: fp8", "it should be 'fp16', 'int4' or 'int8'."),
        ("  target_modules:\n  - q_proj\n  - v_proj\n  - down_proj", "  target_modules: all",
         "'all', but it should be a list, such as [a, b] or it should be 'all-linear'."),
        ("learning_rate: 0.001", "learning_rate: .inf", "'training.learning_rate' is inf"),
        ("idle_seconds: 0.5", "idle_seconds: 1e999", "'workload.idle_seconds' is inf"),
        ("fp16: 0.00028", "fp16: .nan", "'models.0.nominal_gb.fp16' is nan"),
        ("description:", "description: !!binary aGk=\ndescriptio:", "tag:yaml.org,2002:binary"),
        ("models:\n", "models: &a\n- *a\n", "a value refers to itself"),
        ("name: tiny", "? [name]\n: tiny", "a field's name must be a word"),
        ("name: tiny", "name: [tiny", "is not valid YAML at line"),
    ],
)  # fmt: skip
def test_a_slip_is_refused_in_a_sentence(tmp_path: Path, old: str, new: str, sentence: str):
    text = plain(tmp_path)
    assert old in text, text
    assert sentence in refusal(tmp_path, text.replace(old, new, 1))


def test_a_value_that_refers_to_itself_or_a_billion_others_is_refused(tmp_path: Path):
    config = "config: &c {x: *c}"
    text = plain(tmp_path).replace("family: tinyllama", f"family: tinyllama\n  {config}")
    assert "a value refers to itself" in refusal(tmp_path, text)
    laughs = "a0: &a0 [x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
    )
    assert "more than 100,000 values" in refusal(tmp_path, plain(tmp_path) + laughs)
    assert "nested too deeply" in refusal(tmp_path, "[" * 500)


def test_ordinary_references_work(tmp_path: Path):
    text = plain(tmp_path).replace("seed: 7", "seed: &n 7").replace("repetitions: 1", "")
    (tmp_path / "mine.yaml").write_text(text + "repetitions: *n\n")
    assert load_study(tmp_path / "mine.yaml").repetitions == 7


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is not a study"),
        (b"configurations", "is not a study"),
        (b"\xff\xfe\x00", "not text in UTF-8"),
        (b"a: \x07", "is not valid YAML"),
        (b"#" * 2_000_000, "more than 1,000,000 bytes"),
    ],
)
def test_a_file_that_is_no_study_is_refused(tmp_path: Path, content: bytes, sentence: str):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        load_study(path)


@pytest.mark.parametrize("beside", ["models.yaml", "shapes.yaml", "prices.yaml"])
@pytest.mark.parametrize("content", ["", "[]", "x", "sets: 3", "mine: 3", "paper: {}"])
def test_files_beside_a_study_are_checked_too(tmp_path: Path, beside: str, content: str):
    (tmp_path / beside).write_text(content)
    model = tiny.tiny_study(tmp_path)["models"][0] | {"source": "hub", "location": "x/y"}
    for models in (["smollm2-135M"], [model]):
        (tmp_path / "mine.yaml").write_text(plain(tmp_path, models=models))
        told = f"{beside}: nothing"
        try:
            load_study(tmp_path / "mine.yaml")
        except UserError as error:
            told = str(error)
        assert beside in told
        assert "\n" not in told


def test_the_longest_names_make_files_that_every_file_system_takes(tmp_path: Path):
    model = tiny.tiny_study(tmp_path)["models"][0] | {"family": "f" * 64, "size": "s" * 64}
    text = plain(tmp_path, models=[model], tasks=["summarization"], repetitions=1000)
    (tmp_path / "mine.yaml").write_text(text)
    longest = max((run.name for run in load_study(tmp_path / "mine.yaml").runs()), key=len)
    assert len(f".{longest}.answers.parquet.4194304") < 255


def test_a_number_of_repetitions_that_never_ends_is_refused_at_once():
    study = load_study("embedded")
    for refused in (lambda: study.with_repetitions(10**9), lambda: load_study("embedded", 10**9)):
        with pytest.raises(UserError, match="repetitions"):
            refused()
    assert study.with_repetitions(1000).repetitions == 1000
