"""The language of a question, where it is one that the model does not know, so that nobody takes its answers for good.

A question is in another language where at least half of its words are no English and a word or a script says which
language that is. What stands in the index is no evidence: there words find it. Names are none either: few words are
listed, each of which is only that language.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable

from indexer.words import tokens

_MANY = ("xlm", "nllb", "multilingual", "siglip2", "mclip", "m-clip", "i18n", "worldwide", "jina", "altclip")
"""What the name of a model of many languages says."""
_OWN = {
    "German": "ein eine einen einem einer und oder nicht auf mit ohne für über unter zwischen beim zum zur der das dem "
    "den ist sind wir ich auch vor neben hund hunde katze kinder frau mädchen junge leute spielt baum wiese schnee",
    "French": "une des et avec sans pour dans sur sous chez aux ces cette est sont nous je qui chien chienne chat "
    "enfants enfant femme homme fille garçon plage arbre neige voiture maison devant",
    "Spanish": "una unos unas con sin para por entre sobre está están en y es los las perro perros gato niño niños "
    "niña mujer hombre gente playa árbol nieve coche debajo",
    "Italian": "una uno gli della delle dello degli nel nella sulla sul con senza per tra che sono è cane cani gatto "
    "bambino bambini bambina donna uomo spiaggia albero gente",
    "Portuguese": "uma um com sem para em na no nas nos dos das do da são não cachorro cão gato menino menina crianças "
    "mulher homem praia árvore carro pessoas",
    "Dutch": "een het en van met zonder voor naar bij onder naast zijn niet wij ik ook hond honden kat kinderen vrouw "
    "meisje jongen mensen strand boom sneeuw",
}
_ELSEWHERE = (
    "aux baum bij boom cane chat che com con coche das dem den der des del della dello degli delle do dos da donna en "
    "em es est et e frau gli het is je junge kat las los maison met mit na nas no nos para per por que sans sin sous "
    "strand sul sur tra um una uno van y bambino gente"
)
_SHARED = frozenset(_ELSEWHERE.split())
"""Those that are also words or names elsewhere: they count for a language, and do not say by themselves that it is."""
_SCRIPTS = {
    "HIRAGANA": "Japanese",
    "KATAKANA": "Japanese",
    "HANGUL": "Korean",
    "GREEK": "Greek",
    "HEBREW": "Hebrew",
    "THAI": "Thai",
    "CJK": "Chinese",
    "CYRILLIC": "Cyrillic letters",
    "ARABIC": "Arabic letters",
    "DEVANAGARI": "Devanagari letters",
}
"""By the first word of the Unicode name of a letter; what a question may mix stands earlier."""


def is_english_only(model: str) -> bool:
    """Whether a model, by its name, knows English and no other language; not so where the name does not tell."""
    name = model.lower()
    is_folder = name.startswith(("/", ".", "~")) or "\\" in name
    told = name == "mini" or ("/" in name and not name.startswith("hf:") and not is_folder)
    return told and not any(mark in name for mark in _MANY)


def foreign(question: str, is_english: Callable[[str], bool], in_index: Callable[[str], bool]) -> str | None:
    """The language, or the script, of a question that is not in English; None if it is, or that is not certain.

    Args:
        is_english: whether a word is one of English.
        in_index: whether a word stands in the index.

    >>> foreign("ein Hund am Strand", {"am", "strand"}.__contains__, lambda word: False)
    'German'
    """
    words = [unicodedata.normalize("NFC", word) for word in tokens(question) if not any(map(str.isdigit, word))]
    scripts = _scripts(words)
    if scripts:
        return (
            None if all(map(in_index, words)) else next(name for script, name in _SCRIPTS.items() if script in scripts)
        )
    plain = [word.lower() for word in words]
    language, own = _nearest(plain)
    if len(plain) < 2 or language is None or not own - _SHARED:
        return None
    other = [word for word in plain if word in own or not is_english(word)]
    unknown = [word for word in other if not in_index(word)]
    return language if 2 * len(other) >= len(plain) and 2 * len(unknown) >= len(other) else None


def _nearest(plain: Iterable[str]) -> tuple[str | None, set[str]]:
    """The language that has most of these words as its own, and which; none where two have as many."""
    here = set(plain)
    own = {language: here & set(words.split()) for language, words in _OWN.items()}
    (first, most), (_, second) = Counter({language: len(words) for language, words in own.items()}).most_common(2)
    return (first, own[first]) if most > second else (None, set())


def _scripts(words: Iterable[str]) -> set[str]:
    """The scripts of most letters, where these are none of Latin ones."""
    letters = [c for word in words for c in word if c.isalpha()]
    counts = Counter(unicodedata.name(c, "?").split()[0] for c in letters)
    other = {script for script in counts if script in _SCRIPTS}
    return other if 2 * sum(counts[script] for script in other) > len(letters) else set()
