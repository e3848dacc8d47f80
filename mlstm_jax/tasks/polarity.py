"""Which of two labels is the positive one: named by the user, or by numbers and words with only one meaning."""

import math
import re
import unicodedata

# Words of one side in English, and the commonest in other languages; compared without case, accents and signs between.
POSITIVE = """
    positive pos p + good great fresh true t yes y like liked love loved happy joy up recommended satisfied
    favorable favourable pro praise thumb_up thumbs_up 👍 :) 🙂 😀 😊 ☺ ❤
    positiv gut ja positif bon bien bonne oui vrai positivo positiva bueno buena si verdadero buono buona vero
    bom boa sim verdadeiro positief goed pozitif olumlu iyi evet pozytywny pozytywna dobry dobra tak
    pozitivni pozitivny pozitivan pozitivna pozitiv pozitivan positiivinen hyva positivt bra
    положительный положительная положительное положительно позитивный позитивная позитив хороший хорошая хорошо да
    позитивний добре так положителен добър θετικο θετικη θετικος θετικα καλο
    正面 正 正向 积极 積極 好评 好評 好 褒义 肯定 ポジティブ 良い 高評価 긍정 긍정적 좋음 좋아요
    إيجابي ايجابي جيد مثبت خوب חיובי טוב सकारात्मक अच्छा ইতিবাচক เชิงบวก บวก tích_cực
"""
NEGATIVE = """
    negative neg n - bad poor terrible rotten false f no dislike disliked hate hated sad anger down not_recommended
    dissatisfied unsatisfied unfavorable unfavourable con complaint thumb_down thumbs_down 👎 :( 🙁 😞 😠 ☹ 💔
    negativ schlecht nein negatif mauvais mal mauvaise non faux negativo negativa malo mala falso cattivo cattiva
    ruim ma mau nao negatief slecht nee olumsuz kotu hayir negatywny negatywna zly zla nie
    negativni negativny negativan negativna negatiivinen huono negativt dalig
    отрицательный отрицательная отрицательное отрицательно негативный негативная негатив плохой плохая плохо нет
    негативний погано ні отрицателен лош αρνητικο αρνητικη αρνητικος αρνητικα κακο
    负面 負面 负 負 负向 消极 消極 差评 差評 差 坏 壞 贬义 否定 ネガティブ 悪い 低評価 부정 부정적 나쁨 싫어요
    سلبي سيئ سيء منفي منفی بد שלילי רע नकारात्मक बुरा নেতিবাচক เชิงลบ ลบ tiêu_cực
"""


def number(label: str) -> float | None:
    """The finite number that a label is; of stars ("5 stars", "★★★") how many. None of any other label."""
    stars = re.fullmatch(r"\s*(?:([0-9.]+)[\s_-]*stars?|([★⭐]️?)+[☆]*)\s*", label, re.IGNORECASE)
    if stars:
        label = stars[1] or str(sum(label.count(star) for star in "★⭐"))
    try:
        return value if math.isfinite(value := float(label.replace("\u2212", "-"))) else None
    except ValueError:
        return None


def positive_of(one: str, other: str) -> str | None:
    """The positive one of two labels: the higher of two numbers, else as the usual words say; None: it is not plain."""
    a, b = number(_bare(one)), number(_bare(other))
    if a is not None and b is not None and a != b:
        return one if a > b else other
    first, second = ((_word(label) in _POSITIVE, _word(label) in _NEGATIVE) for label in (one, other))
    return {((True, False), (False, True)): one, ((False, True), (True, False)): other}.get((first, second))


def _bare(label: str) -> str:
    """A label without what marks it as one: `__label__2`, `LABEL_1`."""
    return re.sub(r"^_*label[_ ]*", "", label, flags=re.IGNORECASE)


def _word(label: str) -> str:
    letters = unicodedata.normalize("NFKD", _bare(label).casefold().replace("\u2212", "-"))
    marks = ("Mn", "Sk")  # accents, and what varies an emoji
    letters = "".join(c for c in letters if unicodedata.category(c) not in marks).strip()
    return re.sub(r"(?<=\w)[\s_-]+(?=\w)", "_", letters)


_POSITIVE, _NEGATIVE = (frozenset(map(_word, words.split())) for words in (POSITIVE, NEGATIVE))
