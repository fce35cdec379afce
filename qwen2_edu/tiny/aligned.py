"""The same sentence in English, Chinese and Arabic, so that the tokenizer meets three scripts."""

from __future__ import annotations

import random

from .words import COLOURS, NUMBERS, PLACES, THINGS
from .world import pick

# big and small: English, Chinese, Arabic masculine and feminine
SIZES = [("big", "大", "كبير", "كبيرة"), ("small", "小", "صغير", "صغيرة")]
NUMBERS_ZH = "零 一 二 三 四 五 六 七 八 九 十 十一 十二".split()
NUMBERS_AR = "صفر/واحد/اثنان/ثلاثة/أربعة/خمسة/ستة/سبعة/ثمانية/تسعة/عشرة/أحد عشر/اثنا عشر".split("/")


def aligned(rng: random.Random) -> tuple[str, str, str]:
    """The same sentence in English, Chinese and Arabic.

    An Arabic adjective follows its noun and agrees with it in gender and in having the article:
    كرة حمراء a red ball, الكرة الحمراء the red ball, but الكرة حمراء the ball is red.
    """
    noun = pick(rng, sorted(THINGS))
    chinese, arabic = THINGS[noun]
    zh, measure = chinese.split()
    ar, the_ar = arabic[:-2].split(" / ")
    masculine = arabic.endswith(" m")
    colour = pick(rng, sorted(COLOURS))
    other = pick(rng, sorted(set(COLOURS) - {colour}))

    def arabic_colour(word: str) -> str:
        return COLOURS[word][1].split()[0 if masculine else 1]

    c_zh, c_ar = COLOURS[colour][0], arabic_colour(colour)
    size, s_zh, *s_both = pick(rng, SIZES)
    s_ar = s_both[0 if masculine else 1]
    place = pick(rng, sorted(PLACES))
    prep, p_zh, p_ar = PLACES[place]
    a = "an" if colour[0] in "aeiou" else "a"
    the_red_ar = f"{the_ar} ال{c_ar}"
    this, there_is, it = ("هذا", "يوجد", "هو") if masculine else ("هذه", "توجد", "هي")
    one_zh = f"一{measure}{c_zh}的"

    # Three and more: one and two would change their Arabic form with their part in the sentence.
    x = pick(rng, range(3, 8))
    y = pick(rng, range(3, 12 - x))
    en, cn, arab = [(w[x], w[y], w[x + y]) for w in (NUMBERS, NUMBERS_ZH, NUMBERS_AR)]
    choices = [
        (f"This is {a} {colour} {noun}.", f"这是{one_zh}{zh}。", f"{this} {ar} {c_ar}."),
        (
            f"The {colour} {noun} is {prep} the {place}.",
            f"{c_zh}的{zh}在{p_zh}。",
            f"{the_red_ar} {p_ar}.",
        ),
        (f"The {noun} is {colour}.", f"{zh}是{c_zh}的。", f"{the_ar} {c_ar}."),
        (f"The {noun} is {size}.", f"{zh}很{s_zh}。", f"{the_ar} {s_ar}."),
        (
            f"Where is the {colour} {noun}?",
            f"{c_zh}的{zh}在哪里？",
            f"أين {the_red_ar}؟",
        ),
        (
            f"I have a {size} {colour} {noun}.",
            f"我有{one_zh}{s_zh}{zh}。",
            f"لدي {ar} {c_ar} {s_ar}.",
        ),
        (f"She has {a} {colour} {noun}.", f"她有{one_zh}{zh}。", f"لديها {ar} {c_ar}."),
        (f"He has {a} {colour} {noun}.", f"他有{one_zh}{zh}。", f"لديه {ar} {c_ar}."),
        (f"I want the {colour} {noun}.", f"我想要{c_zh}的{zh}。", f"أريد {the_red_ar}."),
        (
            f"There is {a} {colour} {noun} {prep} the {place}.",
            f"{p_zh}有{one_zh}{zh}。",
            f"{there_is} {ar} {c_ar} {p_ar}.",
        ),
        (
            f"Is the {noun} {colour}? No, it is {other}.",
            f"{zh}是{c_zh}的吗？不，是{COLOURS[other][0]}的。",
            f"هل {the_ar} {c_ar}؟ لا، {it} {arabic_colour(other)}.",
        ),
        (
            f"Please give me the {colour} {noun}.",
            f"请给我{c_zh}的{zh}。",
            f"أعطني {the_red_ar} من فضلك.",
        ),
        (
            f"{en[0].capitalize()} plus {en[1]} is {en[2]}.",
            f"{cn[0]}加{cn[1]}等于{cn[2]}。",
            f"{arab[0]} زائد {arab[1]} يساوي {arab[2]}.",
        ),
        (
            f"{en[2].capitalize()} minus {en[1]} is {en[0]}.",
            f"{cn[2]}减{cn[1]}等于{cn[0]}。",
            f"{arab[2]} ناقص {arab[1]} يساوي {arab[0]}.",
        ),
    ]
    return pick(rng, choices)
