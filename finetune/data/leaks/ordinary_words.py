"""Ordinary English words that name no thing: verbs, adverbs, words of degree and of thought.

Replaced by one another they may keep the meaning; a name, an illness or a part of the body does not.
"""

from functools import lru_cache

from finetune.data.leaks.synonyms import is_general

_WORDS = frozenset(
    """
    able absolutely accept accomplish accord account achieve acknowledge across act action actual actually add
    address adequate adjust admit advance advised affair afford against agree ahead aid aim along already also alter
    although altogether always amid among amongst amount ample answer anticipated anyhow anyone anything apart
    apparent apparently appear appearance apply approach approximately apt aptly argue arrange arrive aspect assess
    assign assume assure attach attain attempt attend attribute available await aware away

    background base basic basically basis be bear became because become befall began behave behind belief belong
    beneficial beside besides bet beyond big bind bond bother bound bring broadly brought build burden but buy

    call called came capable capacity care careful carry case cases catch caught central centre certain certainly
    chance check chief choice choose circumstance circumstances cite claim clarify class clear clearly close closely
    clue code collect come comes commence comment commit common commonly compel complain complaint complaints
    complete completely complicate comprise conceive concern concerned conclude conclusion conduct confirmed conform
    connect connection consequent consequently consider considerable considerably consideration consist constitute
    construct content context continue contribute contribution control convenient convey convince cope core correct
    correctly correspond could count couple course cover create criteria criterion crop crucially current currently
    customarily customary cut

    dangerous date deal debate decide decision decisive deem deep deeply define definite definitely degree delay
    deliver demand demonstrate denote depend depict derive descend describe description deserve design designate
    desirable despite destine detail determine develop devise differ difference direct directly disadvantage discern
    disclose discuss discussion dispense display dispose distinct distinctive distribute divide doing domain
    dominant done doubt down downside draw drive driver due duly during dwell

    each earn ease easily easy effective effectively effort either elaborate elect element elicit else elucidate
    emerge emphasise emphasize employ employment enable enact encounter encourage endeavour endure enjoy enlarge
    ensue ensure entail enter entirely entitle equal equally equip equivalent especially essence essentially
    establish esteem estimate evaluate even event eventually ever every everyone everything evidence evident
    evidently evolve exact exactly examine example exceed exceedingly excellent except exceptionally excessive
    exclude exclusively exert exist existence expand expectation expected experience explanation express extend
    extensive extensively extent extra extract extraordinary extremely

    facet fact factor fail fair fairly faithful fall familiar far fashion fast fate favour favourable feel few field
    figure fill final finally find fine firm firmly fit fitting fix flag focus folk folks follow following for force
    forecast foremost foresee forestall foretell form former formerly forth forward found foundation fraction frame
    framework freely frequent frequently fresh fulfil full fully fundamental fundamentally further furthermore
    future

    gain gather gave gear general generally generate gentle genuine get given giving go goal goes going gone good
    got govern grab grade gradually grant grasp great greater greatest greatly ground grounds group grow guess
    guidance guide guideline guidelines

    habitual habitually had half handle handled handy hang happen happens hardly have headed heading held helpful
    helps hence here hidden hinder hint hit hold hope how however huge

    idea ideal ideally identical identify if illustrate imagine immediately impact impair implicate implication
    imply impose impression improper inadequate incline inclined include indeed indicate indication indicative
    individually infer inform initially initiate inquire inside insist inspect instance instantly instead intend
    intense intention interest interesting interpret intervention interventions into introduce investigate involve
    irrespective isolate issue item

    join judge judgement just justification justify

    keep keeping kept key know knowing knowledge known knows

    label lack largely last lasting lastly lately later lay lead leading learn least leave length lesson let liable
    lie light like likelihood likely likewise limit line link list literally live lives locate logical long longer
    look looking looks lose lot lots

    made magnitude main mainly maintain major majority make makes making manage mandatory manifest manner many mark
    marked markedly marker marks material matter matters maximum maybe meaning meaningful means meant measure meet
    meets mention mere merely merit method mind minimum moderately moment monitor moreover mostly motive move much
    must mutual

    namely narrow nature near nearby nearly necessarily necessitate need needed needs nevertheless next nice none
    nonetheless normal normally notable notably note noted nothing notice notion now nowadays number numerous

    object objective obligatory observe obtain obvious obviously occasion occasional occasionally occupy occur
    occurs odds of off offer offers often ok once one ones ongoing onto open operate opinion opportunity opt optimal
    optimum option options ordinarily ordinary organise organize other others otherwise ought out outcome outcomes
    outline output outright outset outside outward overall overcome overly owing own

    paramount part partake participate particular particularly partly pass past path pattern pay peculiar people
    perceive perform perhaps permit persist person pertain pertinent phenomenon phrase pick picture piece pinpoint
    place plan plausible play plenty plus point points portion portray pose position possess possibility possibly
    practical practically practice precise precisely predominant predominantly prefer preferable preferred premise
    prepare prescribe prescribed presence presentation presently preserve presumably presume pretty prevail prevent
    previous previously primarily principally principle prior probable probably problem procedure proceed process
    produce progress prominent promote prompt promptly prone proof proper properly properties property proportion
    propose prospect prospects protect prove proven provide provided providing provoke purely purpose pursue put

    quality quantity question quick quickly quit quite

    raise range rank rapid rapidly rare rarely rate rather ratio rationale reach readily ready real realise realize
    really reason reasonable reasonably recall reckon recognise recognize recommend recommended record recur refer
    reference reflect regard regarded regardless regular regularly relate related relation relationship relatively
    relevant reliable reliably rely remain remark remarkable remarkably remember remind render repeat repeatedly
    replace report represent request requested require required requirement requirements requisite resemble resolve
    respect respective respectively respond responsible rest restrict result resulting retain retrieve return reveal
    review right rise role root roots rough roughly routine routinely rule run

    safe safely said sake salient same satisfy save saw say saying scale scarce scarcely scenario scene scope score
    search see seeing seek seem seems seen seldom select selection sense separate sequence series serious seriously
    serve set sets setting settle several shape share shift short shortly should shown side sight signal signals
    significance significant significantly signify similar similarly simple simply simultaneous since single
    situation situations size slight slightly slow slowly so sole solely solution solve someone something sometimes
    somewhat soon sooner sort sought source space speak special specific specifically specify speedily speedy spend
    split spot spring stand standard start state stated statement states status steadily steady step steps still
    stop stopped straight straightforward strategies strategy stress stretch strictly strike striking strong
    strongly structure struggle subject subsequent subsequently substantial substantially succeed success such
    sudden suddenly suffer suffers sufficient sufficiently suggest suggestive suit suitable sum summarise summarize
    supply support suppose supposed surely surface surprising surround sustain swift swiftly

    table tackle take taken takes taking tangible target task technique tell telling tend tendency term termed terms
    text than thanks that their them then theory there thereby therefore thing things think this thorough thoroughly
    those though thought thoughts through throughout thus tie tied time times title to together told too took tool
    top topic total totally touch toward towards trace track trait transform transmit transport trend trigger
    triggers trouble troubles true truly try turn two type typical typically

    ultimate ultimately unable uncommon under undergo underline underlying understand undertake unfold uniform
    unique unless unlike unlikely until unusual unusually up upon upset use used useful usefulness user uses using
    usual usually utmost utter

    valid validate valuable value varied variety various vary vast verify very via view viewed vital vitally

    wait want wanted ward warrant watch way ways weigh weight well went were whatever when whenever where whereas
    whether whichever while whilst whole wholly whom whose why wide widely widespread will willing wise wish with
    within witness wonder word words work works worth worthwhile would wrong

    yet yield yields you
    """.split()  # noqa: SIM905 - saves six hundred quotation marks
)
_ENDINGS = ("s", "es", "ed", "d", "ing", "ly")


@lru_cache(maxsize=1 << 14)
def is_ordinary(word: str) -> bool:
    """True for an ordinary word that names nothing, inflected or not."""
    if word in _WORDS or is_general(word):
        return True
    stems = [word.removesuffix(ending) for ending in _ENDINGS if word.endswith(ending)]
    return any(stem in _WORDS or f"{stem}e" in _WORDS or f"{stem}y" in _WORDS for stem in stems if len(stem) > 2)
