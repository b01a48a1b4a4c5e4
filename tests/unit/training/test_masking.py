"""Which tokens are learned: exactly the assistant's turns, with their end-of-turn token."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.training.short_chats import chat_of
from training.chats import Chat
from training.errors import JobError
from training.masking import Masker, Row, Sample
from training.template import ChatTemplate

# Qwen3's own, reduced: an answer keeps its reasoning block only while no question follows it.
CHANGES_EARLIER_TURNS = """\
{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' and loop.last %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{{- m.content + '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
PLAIN = CHANGES_EARLIER_TURNS.replace(" and loop.last", " and false")
END_OUTSIDE = """\
{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}{%- if m.role == 'assistant' %}
{%- generation %}{{- m.content }}{%- endgeneration %}{%- else %}{{- m.content }}{%- endif %}
{{- '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""


def learned_text(tokenizer: Any, row: Row) -> list[str]:
    """The runs of learned tokens, as text."""
    runs: list[list[int]] = []
    for i, (token, learned) in enumerate(zip(row.tokens, row.learned, strict=True)):
        if learned:
            if i and row.learned[i - 1]:
                runs[-1].append(token)
            else:
                runs.append([token])
    return [tokenizer.decode(run) for run in runs]


def encode(tokenizer: Any, chat: Chat, template: str | None = None, limit: int = 512) -> Sample:
    if template:
        tokenizer.chat_template = template
    return Masker(ChatTemplate(tokenizer), limit).encode(chat)


TWO_TURNS = chat_of(
    ("system", "助教"),
    ("user", "问甲"),
    ("assistant", "答甲。龘"),
    ("user", "问乙"),
    ("assistant", "答乙。龘"),
)


@pytest.mark.parametrize("template", [None, PLAIN, END_OUTSIDE])
def test_answers_alone_are_learned(tokenizer: Any, template: str | None) -> None:
    sample = encode(tokenizer, TWO_TURNS, template)
    (row,) = sample.rows
    assert learned_text(tokenizer, row) == ["答甲。龘<|im_end|>", "答乙。龘<|im_end|>"]
    assert sample.learned == sum(row.learned)
    assert not sample.cut


def test_a_row_for_each_turn_where_the_template_changes_earlier_ones(tokenizer: Any) -> None:
    sample = encode(tokenizer, TWO_TURNS, CHANGES_EARLIER_TURNS)
    block = "<think>\n\n</think>\n\n"
    assert [learned_text(tokenizer, row) for row in sample.rows] == [
        [f"{block}答甲。龘<|im_end|>"],
        [f"{block}答乙。龘<|im_end|>"],
    ]
    # The second sees the first as it stands in the history: without the block.
    assert tokenizer.decode(sample.rows[1].tokens).count("<think>") == 1


def test_tools_pass_through_the_template(tokenizer: Any) -> None:
    call = {"type": "function", "function": {"name": "求", "arguments": {"x": 1}}}
    chat = chat_of(
        ("user", "问"), ("assistant", None, [call]), ("tool", "3"), ("assistant", "得 3")
    )
    (row,) = encode(tokenizer, chat).rows
    assert learned_text(tokenizer, row) == [
        '<tool_call>\n{"name": "求", "arguments": {"x": 1}}\n</tool_call><|im_end|>',
        "得 3<|im_end|>",
    ]
    assert "<|im_start|>tool\n3<|im_end|>" in tokenizer.decode(row.tokens)


def test_too_long_is_cut_at_a_turn(tokenizer: Any) -> None:
    whole = encode(tokenizer, TWO_TURNS).tokens
    sample = encode(tokenizer, TWO_TURNS, limit=whole - 1)
    assert sample.cut
    assert [learned_text(tokenizer, row) for row in sample.rows] == [["答甲。龘<|im_end|>"]]
    one_turn = sample.tokens
    sample = encode(tokenizer, TWO_TURNS, limit=one_turn - 3)  # not even one fits: within it
    assert sample.cut
    assert sample.tokens == one_turn - 3
    assert encode(tokenizer, TWO_TURNS, limit=8).rows == []  # nothing of an answer is left


def test_a_trailing_question_is_not_fed(tokenizer: Any) -> None:
    chat = chat_of(("user", "问"), ("assistant", "答"), ("user", "再问"))
    (row,) = encode(tokenizer, chat).rows
    assert "再问" not in tokenizer.decode(row.tokens)


def test_no_answer_no_template(tokenizer: Any) -> None:
    with pytest.raises(JobError, match=r"t\.jsonl line 1 has no assistant turn"):
        encode(tokenizer, chat_of(("user", "问")))
    with pytest.raises(JobError, match=r"line 1 is refused by the chat template: .*不行"):
        encode(tokenizer, TWO_TURNS, "{{ raise_exception('不行') }}")
    tokenizer.chat_template = None
    with pytest.raises(JobError, match="has no chat template"):
        ChatTemplate(tokenizer)


def test_the_prompt_ends_where_the_answer_begins(tokenizer: Any) -> None:
    template = ChatTemplate(tokenizer)
    prompt = template.prompt(TWO_TURNS)
    (row,) = encode(tokenizer, TWO_TURNS).rows
    assert row.tokens[: len(prompt)] == prompt
    assert row.learned[len(prompt)]
    assert not row.learned[len(prompt) - 1]
    question = chat_of(("user", "问"))
    assert tokenizer.decode(template.prompt(question)).endswith(
        "问<|im_end|>\n<|im_start|>assistant\n"
    )
