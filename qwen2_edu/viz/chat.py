"""A chat box: the answer as it comes, and what the model reads in place of what people see."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import ipywidgets as widgets

from ..session import ChatSession
from ..tokenizer import TokenizerBase
from .palette import CSS
from .record import check_model
from .tokens import Page, check_tokenizer, tokens

_SETTINGS = {  # option of `generate` -> a widget for it
    "do_sample": lambda value: widgets.Checkbox(value, indent=False),
    "temperature": lambda value: widgets.BoundedFloatText(value, min=0.01, max=10, step=0.1),
    "top_k": lambda value: widgets.BoundedIntText(value, min=0, max=10**6),
    "top_p": lambda value: widgets.BoundedFloatText(value, min=0.01, max=1, step=0.05),
    "min_p": lambda value: widgets.BoundedFloatText(value, min=0, max=1, step=0.05),
    "repetition_penalty": lambda value: widgets.BoundedFloatText(value, min=0.1, max=10, step=0.05),
    "max_new_tokens": lambda value: widgets.BoundedIntText(value, min=1, max=10**6),
}
_REGION = 'tabindex="0" role="region" aria-label="conversation"'


def transcript(messages: Sequence[dict[str, str]]) -> str:
    """A conversation as HTML: the user on the right. Nothing in a message can be markup."""
    bubbles = [
        f'<div class="q2-{escape(message["role"])}" dir="auto"><b>{escape(message["role"])}</b><br>'
        f"{escape(message['content']) or '…'}</div>"
        for message in messages
    ]
    return f'{CSS}<div class="q2-talk">{"".join(bubbles) or "Nothing was said yet."}</div>'


def seen(tokenizer: TokenizerBase, messages: Sequence[dict[str, str]]) -> Page:
    """What the model reads of a conversation: its ChatML tokens.

    If the user has the last word, the head of the answer is there too. Only the template makes
    control tokens (bold): "<|im_end|>" in a message is some letters.
    """
    if not messages:
        return Page("Nothing was said yet.", "nothing was said yet")
    asks = messages[-1]["role"] == "user"
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=asks, return_dict=False)
    return tokens(tokenizer, ids, max_tokens=2048)


class Chat(widgets.VBox):
    """A chat box over a `ChatSession`; `chat` says how to make one.

    Attributes:
        session: holds the conversation, `session.messages`.
        settings: by the name of the option. Set their `value` as the mouse would.
        task: the answer under way, an asyncio.Task; None = none.
    """

    def __init__(self, model: Any, tokenizer: Any, system: str | None, options: dict[str, Any]):
        check_model(model)
        check_tokenizer(tokenizer)
        self.session = ChatSession(model, tokenizer, system, **options)
        self.stopping, self.task = False, None
        self.settings = {
            name: make(getattr(self.session.settings, name)) for name, make in _SETTINGS.items()
        }
        for name, setting in self.settings.items():
            setting.description = name
            setting.style = {"description_width": "140px"}
        self.talk, self.said = widgets.HTML(), widgets.HTML()
        self.box = widgets.Text(
            placeholder="Say something", tooltip="your message", layout={"flex": "1 1 auto"}
        )
        self.buttons = {}
        for act in (self.send, self.stop, self.regenerate, self.clear):
            button = widgets.Button(description=act.__name__, layout={"width": "auto"})
            button.on_click(lambda _, act=act: act())
            self.buttons[act.__name__] = button
        self.ids = widgets.HTML()
        self.view = widgets.Accordion([self.ids, widgets.VBox([*self.settings.values()])])
        self.view.titles = ("what the model sees", "settings")
        super().__init__(
            [self.talk, widgets.HBox([self.box, *self.buttons.values()]), self.said, self.view]
        )
        self.box.on_msg(lambda _, message, __: message.get("event") == "submit" and self.send())
        self.box.observe(lambda _: self._show_ids(), "value")
        self.view.observe(lambda _: self._show_ids(), "selected_index")
        self._show()

    def send(self) -> None:
        """Say what stands in the box."""
        text = self.box.value
        if self.task is None and not text.strip():
            self._say("Type a message first.")
        elif self.task is None and self._begin(text):
            self.box.value = ""

    def stop(self) -> None:
        """End the answer after the token that is being computed; what was said stays."""
        self.stopping = self.task is not None

    def regenerate(self) -> None:
        """Ask the last question again. If that is refused, the old answer stays."""
        before = self.session.messages.copy()
        try:
            question = self.session.undo()
        except ValueError as error:  # nothing was asked yet
            self._say(str(error))
            return
        if not self._begin(question, before):
            self.session.messages[:] = before

    def clear(self) -> None:
        """Start a new conversation."""
        self.session.reset()
        self._show()
        self._say("")

    def static(self) -> Page:
        """The conversation, and what the model sees of it."""
        said = self.session.messages
        page = seen(self.session.tokenizer, said)
        lines = [f"{message['role']}: {message['content']}" for message in said]
        return Page(transcript(said) + page.html, "\n".join([*lines, page.text]))

    def _begin(self, text: str, before: list | None = None) -> bool:
        """Ask. Answers whether the question was accepted; `before` comes back if nothing is said.

        Nothing here runs beside other cells: between two tokens the answer lets the notebook go on,
        which is when a click on "stop" is heard.
        """
        options = {name: setting.value for name, setting in self.settings.items()}
        if not options["do_sample"]:  # then there is nothing to shape
            options = {name: options[name] for name in ("do_sample", "max_new_tokens")}
            options["repetition_penalty"] = self.settings["repetition_penalty"].value
        try:
            with warnings.catch_warnings(record=True) as notes:
                warnings.simplefilter("always")
                pieces = self.session.stream(text, **options)
        except (TypeError, ValueError, RuntimeError) as error:
            self._say(str(error))
            return False
        self._say(" ".join(str(note.message) for note in notes))
        self.stopping = False
        answer = self._answer(text, pieces, before)
        try:
            self.task = asyncio.get_running_loop().create_task(answer)
        except RuntimeError:  # no notebook: answer at once
            asyncio.run(answer)
        else:
            self._enable()
        return True

    async def _answer(self, text: str, pieces: Iterator[str], before: list | None) -> None:
        kept, said = [*self.session.messages], ""
        try:
            while not self.stopping and (piece := next(pieces, None)) is not None:
                said += piece
                self._show([*kept, _message("user", text), _message("assistant", said)])
                await asyncio.sleep(0)
        except Exception as error:  # nobody awaits this: without a word here it would be lost
            self._say(str(error) or type(error).__name__)
        finally:
            pieces.close()
            if before is not None and self.session.messages == kept:
                self.session.messages[:] = before
            self.task = None
            self._show()

    def _show(self, messages: list[dict[str, str]] | None = None) -> None:
        """Show these messages; None = the session's, once an answer is complete."""
        talk = transcript(messages or self.session.messages)
        self.talk.value = f'<div class="q2-end" {_REGION}><div>{talk}</div></div>'
        if messages is None:
            self._show_ids()
            self._enable()

    def _show_ids(self) -> None:
        """What the model would see if the draft in the box were sent now."""
        if self.view.selected_index != 0 or self.task is not None:
            return
        draft = [_message("user", self.box.value)] if self.box.value else []
        try:
            self.ids.value = seen(self.session.tokenizer, [*self.session.messages, *draft]).html
        except ValueError as error:  # a lone surrogate
            self.ids.value = escape(str(error))

    def _enable(self) -> None:
        asked = any(message["role"] == "user" for message in self.session.messages)
        for name, button in self.buttons.items():
            busy = self.task is not None
            button.disabled = not busy if name == "stop" else busy or (name != "send" and not asked)

    def _say(self, text: str) -> None:
        self.said.value = f'{CSS}<div class="q2-say" role="status">{escape(text)}</div>'

    def __repr__(self) -> str:
        return f"Chat({len(self.session.messages)} messages)"


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def chat(model: Any, tokenizer: TokenizerBase, system: str | None = None, **options: Any) -> Chat:
    """A chat box: answers as they come, stop, regenerate, settings, and what the model sees.

    Args:
        system: the system message; None = what the chat template says by itself.
        **options: of `generate`, where the settings stand at first; as in `ChatSession`.

    Raises:
        TypeError, ValueError: no model, no tokenizer, options that cannot be.
    """
    return Chat(model, tokenizer, system, options)
