"""A chat box: the answer as it comes, and what the model reads in place of what people see."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Iterator, Sequence
from html import escape
from itertools import zip_longest
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from ..session import ChatSession
from ..tokenizer import TokenizerBase
from .explorer import attention_explorer
from .given import check_model
from .markdown import markdown
from .palette import CSS as SHARED
from .tokens import Page, check_pair, tokens

CSS = SHARED + f"<style>{Path(__file__).with_name('chat.css').read_text(encoding='utf-8')}</style>"
LONGEST = 512  # tokens whose maps are shown: they grow as its square

_SETTINGS = {  # option of `generate` -> a widget for it
    "do_sample": lambda value: widgets.Checkbox(value, indent=False),
    "temperature": lambda value: widgets.BoundedFloatText(value, min=0.01, max=10, step=0.1),
    "top_k": lambda value: widgets.BoundedIntText(value, min=0, max=10**6),
    "top_p": lambda value: widgets.BoundedFloatText(value, min=0.01, max=1, step=0.05),
    "min_p": lambda value: widgets.BoundedFloatText(value, min=0, max=1, step=0.05),
    "repetition_penalty": lambda value: widgets.BoundedFloatText(value, min=0.1, max=10, step=0.05),
    "max_new_tokens": lambda value: widgets.BoundedIntText(value, min=1, max=10**6),
}
_SHAPES = ("temperature", "top_k", "top_p", "min_p")  # what sampling alone asks
_GREEDY = (
    "do_sample is off: the likeliest token is always taken, so temperature, top_k, top_p and min_p "
    "have no say."
)
_SAMPLED = (
    "Each token is drawn at random. Off: temperature 1, top_k 0, top_p 1, min_p 0, "
    "repetition_penalty 1."
)
_REGION = 'tabindex="0" role="region" aria-label="conversation"'


def transcript(messages: Sequence[dict[str, str]], marks: Sequence[str] = ()) -> str:
    """A conversation as HTML: the user on the right, answers as the Markdown they are written in.

    Args:
        marks: for each message what else there is to say of it, as "stopped here"; "" = nothing.
    """
    bubbles = []
    for message, mark in zip_longest(messages, marks[: len(messages)], fillvalue=""):
        role, said = escape(message["role"]), message["content"]
        if role == "assistant" and said:
            said = f'<div class="q2-md">{markdown(said)}</div>'
        else:
            said = f"<br>{escape(said) or '…'}"
        note = f'<div class="q2-mark">{escape(mark)}</div>' if mark else ""
        bubbles.append(f'<div class="q2-{role}" dir="auto"><b>{role}</b>{said}{note}</div>')
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
        inside: what `look_inside` opened, below all else.
    """

    def __init__(self, model: Any, tokenizer: Any, system: str | None, options: dict[str, Any]):
        check_model(model)
        check_pair(model, tokenizer)
        self.session = ChatSession(model, tokenizer, system, **options)
        self.stopping, self.task = False, None
        self.asked: list[dict[str, str]] | None = None  # what the answer under way is to
        self.unfinished: list[tuple[dict[str, str], str]] = []  # an answer, and why it ends there
        self.settings = {
            name: make(getattr(self.session.settings, name)) for name, make in _SETTINGS.items()
        }
        for name, setting in self.settings.items():
            setting.description = name
            setting.style = {"description_width": "140px"}
        self.talk, self.said, self.rule = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.box = widgets.Text(
            placeholder="Say something", tooltip="your message", layout={"flex": "1 1 auto"}
        )
        self.buttons = {}
        for act in (self.send, self.stop, self.regenerate, self.clear, self.look_inside):
            name = act.__name__.replace("_", " ")
            button = widgets.Button(description=name, layout={"width": "auto"})
            button.on_click(lambda _, act=act: act())
            self.buttons[act.__name__] = button
        self.buttons["look_inside"].tooltip = "what each head looks at in this answer"
        self.ids, self.inside = widgets.HTML(), widgets.VBox()
        settings = widgets.VBox([*self.settings.values(), self.rule])
        self.view = widgets.Accordion([self.ids, settings])
        self.view.titles = ("what the model sees", "settings")
        row = widgets.HBox([self.box, *self.buttons.values()], layout={"flex_flow": "row wrap"})
        super().__init__([self.talk, row, self.said, self.view, self.inside])
        self.box.on_msg(lambda _, message, __: message.get("event") == "submit" and self.send())
        self.box.observe(lambda _: self._show_ids(), "value")
        self.view.observe(lambda _: self._show_ids(), "selected_index")
        self.settings["do_sample"].observe(self._rule, "value")
        self._rule()
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
        self._close_inside()
        self._show()
        self._say("")

    def look_inside(self) -> None:
        """Open the attention explorer on the conversation, where the answer begins."""
        said, tokenizer = self.session.messages, self.session.tokenizer
        ids = tokenizer.apply_chat_template(said, return_dict=False)
        if len(ids) > LONGEST:
            self._say(
                f"The conversation has {len(ids)} tokens; up to {LONGEST} are shown here: clear "
                "it and ask anew, or call viz.attention_explorer(model, tokenizer, "
                f"chat.session.messages, max_tokens={len(ids)})."
            )
            return
        self._say("The model reads the conversation again …")
        asked = said[: -1 if said[-1]["role"] == "assistant" else None]
        head = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        try:
            explorer = attention_explorer(self.session.model, tokenizer, {"input_ids": [ids]})
        except (ValueError, RuntimeError) as error:  # another model's tokens; no memory left
            self._say(str(error))
            return
        explorer.query = min(len(head), len(ids)) - 1
        self._close_inside()
        self.inside.children = [explorer]
        self._say("Below: what each head looks at just before the first word of the answer.")

    def static(self) -> Page:
        """The conversation, and what the model sees of it."""
        said = self.session.messages
        page, marks = seen(self.session.tokenizer, said), self._marks(said)
        lines = [
            f"{message['role']}: {message['content']}{f' [{mark}]' if mark else ''}"
            for message, mark in zip(said, marks, strict=True)
        ]
        return Page(transcript(said, marks) + page.html, "\n".join([*lines, page.text]))

    def _begin(self, text: str, before: list | None = None) -> bool:
        """Ask. Answers whether the question was accepted; `before` comes back if nothing is said.

        Nothing here runs beside other cells: between two tokens the answer lets the notebook go on,
        which is when a click on "stop" is heard.
        """
        options = {name: setting.value for name, setting in self.settings.items()}
        if not options["do_sample"]:  # then there is nothing to shape
            options = {name: options[name] for name in options if name not in _SHAPES}
        try:
            with warnings.catch_warnings(record=True) as notes:
                warnings.simplefilter("always")
                pieces = self.session.stream(text, **options)
        except (TypeError, ValueError, RuntimeError) as error:
            self._say(str(error))
            return False
        notes = " ".join(str(note.message) for note in notes)
        self._say(notes)
        self._close_inside()
        self.stopping, self.asked = False, [*self.session.messages, _message("user", text)]
        answer = self._answer(pieces, before, notes, options["max_new_tokens"])
        try:
            self.task = asyncio.get_running_loop().create_task(answer)
        except RuntimeError:  # no notebook: answer at once
            asyncio.run(answer)
        else:
            self._enable()
        return True

    async def _answer(
        self, pieces: Iterator[str], before: list | None, notes: str, limit: int
    ) -> None:
        session, said, why = self.session, "", ""
        kept, read = [*session.messages], len(session.turn_ids)
        self._show_ids()
        try:
            while not self.stopping and (piece := next(pieces, None)) is not None:
                said += piece
                self._show([*self.asked, _message("assistant", said)])
                await asyncio.sleep(0)
            ends = {*session.settings.eos_token_id, _end_of_turn(session.tokenizer)}
            if session.turn_ids[-1] not in ends:
                if self.stopping:
                    why = "stopped here"
                elif len(session.turn_ids) - read >= limit:
                    why = f"cut off here: the limit is max_new_tokens = {limit}"
        except Exception as error:  # nobody awaits this: without a word here it would be lost
            self._say(str(error) or type(error).__name__)
            why = "an error ended it here"
        finally:
            pieces.close()
            if session.messages != kept:  # there is an answer
                self.unfinished += [(session.messages[-1], why)] * bool(why)
                if before is not None and session.messages == before:
                    self._say(f"{notes} {self._why_the_same()}".strip())
            elif before is not None:
                session.messages[:] = before
            self.task = self.asked = None
            self._show()

    def _why_the_same(self) -> str:
        if self.settings["do_sample"].value:
            return "The same answer was drawn again."
        return (
            "The same answer again, as always while do_sample is off: the likeliest token is taken "
            "each time. Switch do_sample on in the settings for another one."
        )

    def _marks(self, messages: Sequence[dict[str, str]]) -> list[str]:
        """For each message why it is unfinished; "" = it is not."""
        whys = {id(message): why for message, why in self.unfinished}
        return [whys.get(id(message), "") for message in messages]

    def _rule(self, _: Any = None) -> None:
        """Say which settings have a say, and switch the others off."""
        samples = self.settings["do_sample"].value
        for name in _SHAPES:
            self.settings[name].disabled = not samples
        rule = _SAMPLED if samples else _GREEDY
        self.rule.value = f'{CSS}<div class="q2-say" role="status">{rule}</div>'

    def _close_inside(self) -> None:
        for explorer in self.inside.children:
            explorer.close()
        self.inside.children = []

    def _show(self, messages: list[dict[str, str]] | None = None) -> None:
        """Show these messages; None = the session's, once an answer is complete."""
        messages_shown = messages or self.session.messages
        talk = transcript(messages_shown, self._marks(messages_shown))
        self.talk.value = f'<div class="q2-end" {_REGION}><div>{talk}</div></div>'
        if messages is None:
            self._show_ids()
            self._enable()

    def _show_ids(self) -> None:
        """What the model reads for the answer under way, or would if the draft were sent now."""
        if self.view.selected_index != 0:
            return
        draft = [_message("user", self.box.value)] if self.box.value else []
        messages = self.asked or [*self.session.messages, *draft]
        try:
            self.ids.value = seen(self.session.tokenizer, messages).html
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


def _end_of_turn(tokenizer: TokenizerBase) -> int | None:
    return tokenizer.convert_tokens_to_ids("<|im_end|>")


def chat(model: Any, tokenizer: TokenizerBase, system: str | None = None, **options: Any) -> Chat:
    """A chat box: answers as they come, stop, regenerate, settings, what the model sees and does.

    Args:
        system: the system message; None = what the chat template says by itself.
        **options: of `generate`, where the settings stand at first; as in `ChatSession`.

    Raises:
        TypeError, ValueError: no model, no tokenizer, options that cannot be.
    """
    return Chat(model, tokenizer, system, options)
