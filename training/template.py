"""The tokenizer's chat template: turns messages into the text that the model sees."""

from __future__ import annotations

from typing import Any

from training.chats import Chat
from training.errors import JobError

DEFAULT_TEMPLATE = """\
{%- if tools %}
    {{- '<|system|>\\nTools:' }}
    {%- for tool in tools %}
        {{- '\\n' + (tool | tojson) }}
    {%- endfor %}
    {{- eos_token + '\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|' + message.role + '|>\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}
            {{- message.content or '' }}
            {%- for call in message.tool_calls or [] %}
                {{- '<tool_call>\\n' + (call.function | tojson) + '\\n</tool_call>' }}
            {%- endfor %}
            {{- eos_token }}
        {%- endgeneration %}
    {%- else %}
        {{- (message.content or '') + eos_token }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>\\n' }}
{%- endif %}
"""
"""For a model that has no chat template. Turns end with the tokenizer's own end token, which every
model knows; the roles are plain text, as in Zephyr's."""


class ChatTemplate:
    """A tokenizer and its chat template."""

    def __init__(self, tokenizer: Any) -> None:
        """:raises JobError: category ``ops``: no chat template, or a tokenizer that can't say
        which characters a token comes from.
        """
        if not tokenizer.chat_template:
            raise JobError(
                "ops",
                f"The tokenizer of {tokenizer.name_or_path} has no chat template.",
                "Use the instruct or chat variant of the model.",
            )
        if not tokenizer.is_fast:
            raise JobError(
                "ops",
                f"The tokenizer of {tokenizer.name_or_path} is a slow one, without offsets.",
                "Use a model that comes with a tokenizer.json.",
            )
        self.tokenizer = tokenizer

    @property
    def is_default(self) -> bool:
        """Whether the model has none of its own."""
        return bool(self.tokenizer.chat_template == DEFAULT_TEMPLATE)

    def render(self, chat: Chat, messages: list[dict[str, Any]], generation: bool = False) -> str:
        """The text of some of the chat's messages.

        :param generation: add what stands before an answer.
        """
        text = self.tokenizer.apply_chat_template(
            messages, tools=chat.tools, tokenize=False, add_generation_prompt=generation
        )
        return str(text)

    def prompt(self, chat: Chat) -> list[int]:
        """The tokens that the model is asked with: all but a last answer of the assistant.

        :raises JobError: category ``data``, for a chat that the template refuses.
        """
        last = chat.messages[-1]["role"] == "assistant"
        messages = chat.messages[:-1] if last else chat.messages
        try:
            text = self.render(chat, messages, generation=True)
        except Exception as error:
            raise refused(chat, error) from None
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def refused(chat: Chat, error: Exception) -> JobError:
    """The error for a chat that the template can't render; a template raises what it likes."""
    return JobError(
        "data",
        f"{chat.where} is refused by the chat template: {error}.",
        "Write the chat in the form that the base model's template wants.",
    )
