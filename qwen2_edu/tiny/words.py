"""The words of the small world, and how they look when they stand in a sentence.

Everything that a story can be about is one of six kinds of word. A word is a small dictionary of
*attributes*: a person has a name and the pronouns that go with it, a thing has a noun, a colour and
a size. Sentences ask for a word in a *form*, and a form is a pattern of attributes: the form "a" of
a thing is "a {size} {colour} {noun}".

Things, colours and places also have their Chinese and Arabic names: with the measure word that
Chinese counts them by, and with the gender that Arabic adjectives agree with.
"""

from __future__ import annotations

SHE = "Amira Anna Clara Ella Hana Ida Leila Lena Lily Maya Mei Mia Nora Olga Pia Rosa Ruth Sofia"
HE = "Ben Bruno Felix Finn Hugo Jack Karim Leo Luca Max Noah Omar Oscar Paul Raj Sam Theo Tom"
SHE = [*SHE.split(), "Tess", "Zoe"]
HE = [*HE.split(), "Wei", "Yusuf"]
NAMES = sorted(SHE + HE)

# noun | Chinese, measure word | Arabic, Arabic with the article, m(asculine) or f(eminine)
THINGS_TABLE = """
bag      | 包     个 | حقيبة / الحقيبة f
ball     | 球     个 | كرة / الكرة f
basket   | 篮子   个 | سلة / السلة f
bell     | 铃铛   个 | جرس / الجرس m
bicycle  | 自行车 辆 | دراجة / الدراجة f
blanket  | 毯子   条 | بطانية / البطانية f
boat     | 船     条 | قارب / القارب m
book     | 书     本 | كتاب / الكتاب m
bottle   | 瓶子   个 | زجاجة / الزجاجة f
box      | 盒子   个 | صندوق / الصندوق m
broom    | 扫帚   把 | مكنسة / المكنسة f
brush    | 刷子   把 | فرشاة / الفرشاة f
bucket   | 水桶   个 | دلو / الدلو m
button   | 纽扣   颗 | زر / الزر m
candle   | 蜡烛   根 | شمعة / الشمعة f
chair    | 椅子   把 | كرسي / الكرسي m
clock    | 钟     个 | ساعة / الساعة f
coat     | 外套   件 | معطف / المعطف m
cup      | 杯子   个 | كوب / الكوب m
doll     | 娃娃   个 | دمية / الدمية f
drum     | 鼓     面 | طبل / الطبل m
flag     | 旗子   面 | علم / العلم m
guitar   | 吉他   把 | غيتار / الغيتار m
hat      | 帽子   顶 | قبعة / القبعة f
key      | 钥匙   把 | مفتاح / المفتاح m
kite     | 风筝   只 | طائرة ورقية / الطائرة الورقية f
lamp     | 灯     盏 | مصباح / المصباح m
map      | 地图   张 | خريطة / الخريطة f
mirror   | 镜子   面 | مرآة / المرآة f
pen      | 钢笔   支 | قلم / القلم m
pillow   | 枕头   个 | وسادة / الوسادة f
plate    | 盘子   个 | طبق / الطبق m
ribbon   | 丝带   条 | شريط / الشريط m
rope     | 绳子   根 | حبل / الحبل m
scarf    | 围巾   条 | وشاح / الوشاح m
shirt    | 衬衫   件 | قميص / القميص m
spoon    | 勺子   把 | ملعقة / الملعقة f
teapot   | 茶壶   把 | إبريق شاي / إبريق الشاي m
umbrella | 雨伞   把 | مظلة / المظلة f
whistle  | 哨子   个 | صفارة / الصفارة f
"""

# colour | Chinese | Arabic masculine, feminine
COLOURS_TABLE = """
black  | 黑色 | أسود سوداء
blue   | 蓝色 | أزرق زرقاء
brown  | 棕色 | بني بنية
green  | 绿色 | أخضر خضراء
grey   | 灰色 | رمادي رمادية
orange | 橙色 | برتقالي برتقالية
pink   | 粉色 | وردي وردية
purple | 紫色 | بنفسجي بنفسجية
red    | 红色 | أحمر حمراء
white  | 白色 | أبيض بيضاء
yellow | 黄色 | أصفر صفراء
"""

# place | preposition | Chinese, after 在 | Arabic
PLACES_TABLE = """
attic      | in    | 阁楼里   | في العلية
bakery     | at    | 面包店里 | في المخبز
barn       | in    | 谷仓里   | في الحظيرة
beach      | on    | 海滩上   | على الشاطئ
bridge     | under | 桥下     | تحت الجسر
cellar     | in    | 地窖里   | في القبو
forest     | in    | 森林里   | في الغابة
garden     | in    | 花园里   | في الحديقة
harbour    | at    | 港口     | في الميناء
hill       | on    | 山上     | على التل
kitchen    | in    | 厨房里   | في المطبخ
lake       | by    | 湖边     | عند البحيرة
library    | in    | 图书馆里 | في المكتبة
lighthouse | by    | 灯塔旁边 | عند المنارة
market     | at    | 市场里   | في السوق
mill       | by    | 磨坊旁边 | عند الطاحونة
museum     | in    | 博物馆里 | في المتحف
river      | by    | 河边     | عند النهر
school     | at    | 学校里   | في المدرسة
station    | at    | 车站里   | في المحطة
"""


def _rows(table: str) -> dict[str, list[str]]:
    """A table as written above -> its first column, each with the other cells."""
    rows = [[cell.strip() for cell in line.split("|")] for line in table.strip().splitlines()]
    return {first: rest for first, *rest in rows}


THINGS, COLOURS, PLACES = map(_rows, (THINGS_TABLE, COLOURS_TABLE, PLACES_TABLE))
SIZES = ["big", "huge", "small", "tiny"]
ANIMALS = ["cat", "crow", "dog", "donkey", "duck", "fox", "goat", "goose", "hen", "pig"]
TREATS = "apples biscuits buns carrots cherries figs lemons nuts pears plums".split()
NUMBERS = "no one two three four five six seven eight nine ten eleven twelve".split()

# What each kind of word may be: a list of attribute dictionaries. The first attribute is its key.
PERSONS = [
    {"name": n, "she": "she", "She": "She", "her": "her", "Her": "Her", "him": "her"} for n in SHE
] + [{"name": n, "she": "he", "She": "He", "her": "his", "Her": "His", "him": "him"} for n in HE]
WORDS = {
    "person": PERSONS,
    "thing": [
        {"noun": noun, "colour": colour, "size": size}
        for noun in THINGS
        for colour in COLOURS
        for size in SIZES
    ],
    "place": [
        {"place": place, "prep": row[0], "Prep": row[0].capitalize()}
        for place, row in PLACES.items()
    ],
    "animal": [{"animal": animal} for animal in ANIMALS],
    "number": [{"number": number} for number in NUMBERS],
    "treat": [{"treat": treat} for treat in TREATS],
}
KEY = {kind: next(iter(words[0])) for kind, words in WORDS.items()}

# {A}, {T.a}, {P.at} …: the letter of a role says which kind of word fills it …
KIND_OF_ROLE = {letter: "person" for letter in "ABC"}
KIND_OF_ROLE |= {letter: "thing" for letter in "TU"} | {letter: "place" for letter in "PQ"}
KIND_OF_ROLE |= {letter: "animal" for letter in "YZ"} | {letter: "number" for letter in "KMN"}
KIND_OF_ROLE |= {"F": "treat"}

# … and what stands after the dot says in which form; another one is the attribute of that name.
FORMS = {
    ("thing", "a"): "a {size} {colour} {noun}",
    ("thing", "c"): "{colour} {noun}",
    ("thing", "is"): "{size} and {colour}",
    ("place", "at"): "{prep} the {place}",
    ("place", "At"): "{Prep} the {place}",
    ("animal", "a"): "a {animal}",
    ("animal", "A"): "A {animal}",
}
TAG_OF_ATTRIBUTE = {"name": "person", "place": "place", "noun": "thing", "treat": "thing"}
