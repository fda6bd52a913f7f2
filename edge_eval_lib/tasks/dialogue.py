"""The second reply of a two-turn dialogue: an embedded service desk, or UltraChat."""

from edge_eval_lib.tasks.base import Example, TaskData
from edge_eval_lib.tasks.sources import HubSet, Row, shipped_rows

# How a prompt is made; part of data_fingerprint.
PROMPT = {
    "embedded_system": "You are the repair and hire desk. Reply in one line.",
    "public_system": "You are a helpful assistant.",
}
# Hub dialogues with longer turns than this are passed over, so that prompts fit small contexts.
MAX_DIALOGUE_WORDS = 400

HUB = HubSet(
    "HuggingFaceH4/ultrachat_200k",
    "8049631c405ae6576f93f445c6b8166f76f5505a",
    "train_sft",
    "test_sft",
)
SHIPPED_FILES = ("dialogue_train.jsonl", "dialogue_evaluation.jsonl")
ROLES = ["user", "assistant", "user", "assistant"]


def shipped() -> tuple[list[Row], list[Row]]:
    """Training and evaluation rows of the embedded set."""
    train, evaluation = (shipped_rows(name) for name in SHIPPED_FILES)
    return train, evaluation


def from_hub(row: Row) -> Row | None:
    """The first two turns of an UltraChat row in our shape; None if short of two, or too long."""
    messages = row["messages"][: len(ROLES)]
    if [message["role"] for message in messages] != ROLES:
        return None
    contents = [message["content"].strip() for message in messages]
    words = sum(len(content.split()) for content in contents[:-1])
    if not all(contents) or words > MAX_DIALOGUE_WORDS:
        return None
    return {
        "id": row["prompt_id"],
        "key": contents[0],
        "turns": contents[:-1],
        "reply": contents[-1],
    }


def build(train: list[Row], evaluation: list[Row], source: str) -> TaskData:
    """Examples whose prompt ends with the second user turn and whose answer is the reply."""
    return TaskData(
        "dialogue",
        [_example(row, source) for row in train],
        [_example(row, source) for row in evaluation],
    )


def _example(row: Row, source: str) -> Example:
    system = PROMPT["embedded_system" if source == "embedded" else "public_system"]
    turns = [
        {"role": role, "content": content}
        for role, content in zip(ROLES, row["turns"], strict=False)
    ]
    return Example(
        id=row["id"],
        messages=[{"role": "system", "content": system}, *turns],
        answer=row["reply"],
    )
