"""Rendering chats by the tokenizer's template, and locating the messages in the text."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from offkey.errors import BadInput

__all__ = ["content_spans", "render"]

Chat = Sequence[Mapping[str, Any]]


def render(messages: Chat, tokenizer: Any, place: str = "") -> str:
    """The chat as text, ready for the model's answer.

    Raises:
        BadInput: there is no chat template, or it refuses the chat.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise BadInput(
            "the tokenizer has no chat template",
            where=place,
            mend="Give the text under 'prompt' in place of 'messages'",
        )
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
        )
    except (TemplateError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise BadInput(
            f"the chat template refuses the messages: {reason}",
            where=place,
            mend="Use the roles and the order that the model was trained with",
        ) from None

    return str(text)


def content_spans(messages: Chat, text: str, tokenizer: Any) -> list[tuple[int, int]]:
    """Start and end of each message's content in the rendered ``text``.

    The template is rendered once with marks in place of the contents, which shows its own pieces;
    a content that the template changes (it may trim it) is what lies between two of them. Where
    the pieces depend on the contents, the contents are searched for one after the other.
    """
    marks = [f"\ue000{number}\ue001" for number in range(len(messages))]
    marked = [{**message, "content": m} for message, m in zip(messages, marks, strict=True)]
    try:
        outline = render(marked, tokenizer)
    except BadInput:
        outline = ""

    once = [number for number, mark in enumerate(marks) if outline.count(mark) == 1]
    pieces = re.split("|".join(re.escape(marks[n]) for n in once), outline) if once else []
    contents = [str(messages[number]["content"]) for number in once]

    return (
        _exact(pieces, contents, text)
        or _exact(pieces, [content.strip() for content in contents], text)
        or _between(pieces, text)
        or _searched([str(message["content"]) for message in messages], text)
    )


def _exact(pieces: Sequence[str], contents: Sequence[str], text: str) -> list[tuple[int, int]]:
    if not pieces:
        return []

    spans, at = [], len(pieces[0])
    joined = pieces[0]
    for content, piece in zip(contents, pieces[1:], strict=True):
        spans.append((at, at + len(content)))
        at += len(content) + len(piece)
        joined += content + piece

    return spans if joined == text else []


def _between(pieces: Sequence[str], text: str) -> list[tuple[int, int]]:
    if not pieces:
        return []

    pattern = "(.*?)".join(re.escape(piece) for piece in pieces)
    match = re.fullmatch(pattern, text, re.DOTALL)

    return [match.span(i) for i in range(1, len(pieces))] if match else []


def _searched(contents: Sequence[str], text: str) -> list[tuple[int, int]]:
    spans, at = [], 0
    for content in contents:
        for form in (content, content.strip()):
            start = text.find(form, at) if form else -1
            if start >= 0:
                at = start + len(form)
                spans.append((start, at))
                break

    return spans
