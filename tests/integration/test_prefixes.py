"""Keys and values kept between calls: the same tokens as without, and how many are taken over."""

import pytest
import torch
from tiny import make_tiny_model

from edge_eval_lib.engines import open_engine
from edge_eval_lib.engines.base import Requests
from edge_eval_lib.errors import UserError
from edge_eval_lib.models.prefixes import Kept, PrefixStore, require_whole_cache

TOKENS = 6


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    directory = make_tiny_model(tmp_path_factory.mktemp("model") / "llama")
    opened = open_engine("transformers", directory, "float32", prefix_caching=True)
    opened.load()
    return opened


def answered(engine, rounds, sharing, slots=4, **asked):
    engine.share_prefixes = sharing
    engine.forget()
    given = [
        [one.token_ids for one in engine.answer(Requests(prompts, TOKENS, slots, **asked))]
        for prompts in rounds
    ]
    engine.share_prefixes = False
    return given


def conversation(engine):
    """Three rounds of prompts of unequal length, each going on from what was answered before."""
    generator = torch.Generator().manual_seed(3)

    def drawn(count):
        return torch.randint(5, 1000, (count,), generator=generator).tolist()

    first = [drawn(20) + drawn(n) for n in (1, 7, 3)]
    common = drawn(9)
    first = [common + prompt for prompt in first]
    (answers,) = answered(engine, [first], sharing=False)
    pairs = zip(first, answers, (4, 1, 11), strict=True)
    second = [prompt + answer + drawn(n) for prompt, answer, n in pairs]
    third = [second[1] + drawn(2), common + drawn(5), drawn(8)]  # what ended, and what is new
    return [first, second, third]


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_greedy_tokens_are_the_same_with_and_without_reuse(engine, slots):
    rounds = conversation(engine)
    without = answered(engine, rounds, sharing=False, slots=slots)
    shared = answered(engine, rounds, sharing=True, slots=slots)
    assert shared == without
    assert engine.prefix_cache_hit_rate > 0.3


def test_only_what_is_new_is_computed(engine, monkeypatch):
    rounds = conversation(engine)
    computed = []
    forward = engine.model.forward

    def counted(*arguments, **options):
        computed.append(options["input_ids"].shape[1])
        return forward(*arguments, **options)

    monkeypatch.setattr(engine.model, "forward", counted)
    answered(engine, rounds[:2], sharing=True)
    prompts = [computed[0], computed[TOKENS]]
    assert prompts[0] == max(map(len, rounds[0]))
    # The last token that was answered, and at most eleven new ones.
    assert prompts[1] == 12
    total = sum(map(len, rounds[0] + rounds[1]))
    taken_over = sum(len(prompt) + TOKENS - 1 for prompt in rounds[0])
    assert engine.prefix_cache_hit_rate == pytest.approx(taken_over / total)


def test_serve_starts_with_nothing_computed(engine):
    first = conversation(engine)[0]
    engine.share_prefixes = True
    for _ in range(2):
        engine.serve(first, TOKENS, 4)
        assert engine.prefix_cache_hit_rate == 0
    engine.share_prefixes = False


def test_a_prompt_takes_over_the_longest_beginning_but_never_its_last_token():
    store = PrefixStore(2)
    for tokens in ([1, 2, 3], [1, 2, 3, 4, 5], [1, 9]):
        store.kept.append(Kept(tokens, []))
    assert [kept.token_ids for kept in store.kept] == [[1, 2, 3, 4, 5], [1, 9]]  # the oldest went
    assert store.reusable([1, 2, 3, 4, 7])[0] == 4
    assert store.reusable([1, 2, 3])[0] == 2
    assert store.reusable([1, 9, 8]) == (2, store.kept[1])
    assert store.reusable([7, 1, 2]) == (0, None)


def test_models_that_forget_share_nothing(tmp_path):
    from transformers import AutoModelForCausalLM, Mistral4Config, MistralConfig  # noqa: F401

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 32}
    small |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    window = AutoModelForCausalLM.from_config(MistralConfig(**small, sliding_window=8))
    with pytest.raises(UserError, match=r"prefix_caching: a mistral model does not keep all keys"):
        require_whole_cache(window)


def test_certainty_is_of_the_tokens_that_were_given(engine):
    prompts = conversation(engine)[0]
    (alone,) = engine.answer(Requests(prompts[:1], TOKENS, 1, confidence=True))
    ids = torch.tensor([prompts[0] + alone.token_ids])
    with torch.inference_mode():
        scores = engine.model(ids).logits[0, len(prompts[0]) - 1 : -1].log_softmax(-1)
    expected = scores[torch.arange(TOKENS), torch.tensor(alone.token_ids)]
    assert alone.logprobs == pytest.approx(expected.tolist(), abs=1e-4)
    two = scores.topk(2).values.exp()
    assert alone.margins == pytest.approx((two[:, 0] - two[:, 1]).tolist(), abs=1e-4)
    for one in engine.answer(Requests(prompts, TOKENS, 4)):
        assert one.logprobs == one.margins == []


def test_drawn_answers_follow_from_their_seed(engine):
    prompts = conversation(engine)[0]
    state = torch.random.get_rng_state()

    def drawn(seed, temperature=1.0):
        (given,) = answered(engine, [prompts], False, temperature=temperature, seed=seed)
        return given

    assert drawn(1) == drawn(1) != drawn(2)
    assert torch.equal(torch.random.get_rng_state(), state)  # nobody else's draws are moved
    (greedy,) = answered(engine, [prompts], False)
    assert drawn(1, temperature=1e-4) == greedy
