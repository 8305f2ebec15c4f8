"""Words that ask the same: a small list of plain and clinical English, for questions put in other words."""

from functools import lru_cache

_GROUPS = """
symptom sign manifestation indication
cause reason etiology aetiology origin
cause causes lead trigger produce provoke
treat treatment therapy therapeutic manage management remedy cure
doctor physician clinician practitioner
drug medicine medication medicament pharmaceutical
illness disease disorder condition sickness ailment
prevent prevention avoid avert
diagnose diagnosis diagnosed detect detected identify identified
expect anticipate
outlook prognosis
urgent immediate emergency
seek get obtain look find
risk danger hazard
highest greatest biggest largest
patient patients sufferer
child children kid kids
people persons individuals
big large
small little
begin start commence
end finish stop cease
help aid assist support
show display exhibit demonstrate reveal
describe explain outline
define mean meaning definition
name list state mention
kind type sort form variety
test exam examination
surgery operation procedure
common frequent usual typical
quick fast rapid
hard difficult
need require
use utilise utilize employ
happen occur
important significant essential
main principal primary chief
best optimal
effect consequence result outcome impact
complication problem
increase raise elevate
decrease reduce lower diminish
work function operate
body organism
hurt injure harm damage
pain ache soreness
tired fatigued exhausted
complete full total
method technique approach way
eat consume ingest
care attention assistance
affect influence
"""
_GROUP_OF: dict[str, set[int]] = {}
for _number, _line in enumerate(_GROUPS.strip().splitlines()):
    for _word in _line.split():
        _GROUP_OF.setdefault(_word, set()).add(_number)


def are_synonyms(one: str, other: str) -> bool:
    """True if the list has both in a line, in the singular or the plural, as a verb with -s, -ed or -ing."""
    return not _groups(one).isdisjoint(_groups(other))


@lru_cache(maxsize=1 << 14)
def _groups(word: str) -> set[int]:
    for form in (
        word,
        word.removesuffix("s"),
        word.removesuffix("es"),
        word.removesuffix("ed"),
        word.removesuffix("d"),
    ):
        if form in _GROUP_OF:
            return _GROUP_OF[form]
    stem = word.removesuffix("ing")
    return _GROUP_OF.get(stem, _GROUP_OF.get(f"{stem}e", set())) if stem != word else set()
