import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.config.data import CleaningSection
from finetune.data.cleaning.boilerplate import MIN_ROWS, Boilerplate
from finetune.data.cleaning.clean import (
    active_steps,
    map_texts,
    normalise_lines,
    normalise_unicode,
    normalise_whitespace,
    report_only_steps,
    strip_html,
)
from finetune.data.cleaning.flaws import flaw, flaws, is_truncated
from finetune.data.cleaning.privacy import mask_personal_data
from gladstone.chat.messages import Conversation, Message, ToolCall

SECTION = CleaningSection()
STRICT = CleaningSection(min_chars=10, max_chars=2000, echoes="drop", cut_answers="drop sure")


def conversation(question: str, answer: str, reasoning: str | None = None) -> Conversation:
    return Conversation((Message("user", question), Message("assistant", answer, reasoning)), "rows.jsonl:1")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("cafe\u0301", "café"),
        ("zero\u200bwidth\ufeff and soft\u00adhyphen", "zerowidth and softhyphen"),
        ("bell\x07 and \x00nul", "bell and nul"),
        ("\u202eoverride\u202c", "override"),
        ("\u202bשלום\u202c (abc)", "\u202bשלום\u202c (abc)"),
        ("2\u00ad3 mg of X\u00adray, re\u00adin\u00adfec\u00adtion", "2\u00ad3 mg of X\u00adray, reinfection"),
        ("ភាសា\u200bខ្មែរ", "ភាសា\u200bខ្មែរ"),
        ("don\u0092t", "don\u0092t"),
        ("\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m"),
        ("MSH|a\x1cb", "MSH|a\x1cb"),
        ("\U0001f3f4\U000e0067\U000e0062\U000e007f ❤\ufe0f", "\U0001f3f4\U000e0067\U000e0062\U000e007f ❤\ufe0f"),
        ("f\u2061(x), 3\u2064½", "f\u2061(x), 3\u2064½"),
        ("```\ncafe\u0301\u200b\n```\ncafe\u0301", "```\ncafe\u0301\u200b\n```\ncafé"),
        ("<code>cafe\u0301</code> cafe\u0301", "<code>cafe\u0301</code> café"),
        ("    cafe\u0301\ncafe\u0301", "    cafe\u0301\ncafé"),
        ("می\u200cخواهم 👩\u200d⚕️", "می\u200cخواهم 👩\u200d⚕️"),
        ("a\tb\nc", "a\tb\nc"),
    ],
)
def test_unicode_is_composed_and_visible(text: str, wanted: str) -> None:
    assert normalise_unicode(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("<p>One</p><p>Two</p>", "\nOne\n\nTwo\n"),
        ("a<br/>b<BR >c", "a\nb\nc"),
        ('see <a href="x">this</a>', "see this"),
        ("<b>bold</b> H<sub>2</sub>O", "bold H2O"),
        ("x<!-- note\n -->y", "xy"),
        ("5 &lt; 6 &amp; &#945;-blocker &nbsp;", "5 < 6 & α-blocker \u00a0"),
        ("p < 0.05 and q > 3", "p < 0.05 and q > 3"),
        ("<think>keep</think>", "<think>keep</think>"),
        ("R&D; AT&T", "R&D; AT&T"),
        ("&lt;b&gt;", "<b>"),
        ("<script>", ""),
        ("<p>Write</p>\n```\n<b>x</b> &amp;\n```", "\nWrite\n\n```\n<b>x</b> &amp;\n```"),
        ("Use `<b>` <i>so</i>", "Use `<b>` so"),
        ("<p>So:</p><pre>a:\n  b: &lt;1</pre>", "\nSo:\n\n```\na:\n  b: <1\n```\n"),
    ],
)
def test_html_goes_and_what_only_looks_like_it_stays(text: str, wanted: str) -> None:
    assert strip_html(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("  a \u00a0 b\t\tc  ", "a b c"),
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("a\n\n\n\n b \n", "a\n\nb"),
        ("a  b\n```\nif x:\n    y  # z\n\n\n```\n\n\n\n c", "a b\n```\nif x:\n    y  # z\n\n\n```\n\nc"),
        ("a  b <code>x  y</code>  z", "a b <code>x  y</code> z"),
    ],
)
def test_whitespace_is_of_one_kind(text: str, wanted: str) -> None:
    assert normalise_whitespace(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("a \nb \u00a0\n\n\nc   ", "a\nb\n\n\nc"),
        ("first  \nsecond   \n\nthird  ", "first  \nsecond\n\nthird"),
        ("\n \n    return x\n", "    return x"),
        ("a\tb\t\nc\t\t\nd \n", "a\tb\t\nc\t\t\nd"),
        ("no table\t\nhere\t", "no table\nhere"),
        ("a \n```\nb \r\n\r\n\r\n```\nc \nd", "a\n```\nb \n\n\n```\nc\nd"),
        ("a \n    b = 1 \nc \nd", "a\n    b = 1 \nc\nd"),
        ("<pre>a  \n</pre> \nb", "<pre>a  \n</pre>\nb"),
        ("~~~~\na \n~~~\nb \n~~~~\nc \nd", "~~~~\na \n~~~\nb \n~~~~\nc\nd"),
        ("- ```\n  a \n  ```\n- b \nc", "- ```\n  a \n  ```\n- b\nc"),
        ("```\nnever closed \n", "```\nnever closed"),
    ],
)
def test_line_ends_are_of_one_kind_and_code_keeps_its_lines(text: str, wanted: str) -> None:
    assert normalise_lines(text) == wanted


@given(st.text(max_size=80))
def test_cleaning_a_clean_text_changes_nothing(text: str) -> None:
    for step in (normalise_unicode, normalise_lines, normalise_whitespace):
        assert step(step(text)) == step(text)


def test_a_step_that_is_off_is_not_taken() -> None:
    assert list(active_steps(SECTION)) == ["unicode", "lines"]
    assert list(report_only_steps(SECTION)) == ["html", "whitespace"]
    asked = CleaningSection.model_validate({"html": True, "whitespace": False, "unicode": False})
    assert list(active_steps(asked)) == ["html", "lines"]
    assert list(report_only_steps(asked)) == []


def test_true_and_false_stand_for_what_a_step_does_and_does_not() -> None:
    section = CleaningSection.model_validate({"html": True, "whitespace": False, "echoes": True, "boilerplate": True})
    assert (section.html, section.whitespace, section.echoes, section.boilerplate) == (
        "remove", "keep", "drop", "remove"
    )  # fmt: skip


def test_every_text_of_a_row_is_changed_and_empty_reasoning_is_none() -> None:
    row = map_texts(conversation("a ", "b ", " "), str.strip)
    assert [(message.content, message.reasoning) for message in row.messages] == [("a", None), ("b", None)]
    same = conversation("a", "b", "c")
    assert map_texts(same, str.strip) is same


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (conversation("What is the liver for?", ""), "empty"),
        (conversation("Why?", "So."), "too short"),
        (conversation("What is the liver for?", "x" * 2001), "too long"),
        (conversation("y" * 2001, "A long question is too long, too."), "too long"),
        (conversation("What is the liver for?", "what is the LIVER for"), "echo"),
        (conversation("What is it?", "It filters blood. It also makes bile and stores the"), "cut"),
        (conversation("What is the liver for?", "Bile."), None),
        (conversation("What is the liver for?", "Bile.", "r" * 5000), None),
    ],
)
def test_rows_that_teach_nothing_have_a_reason(row: Conversation, reason: str | None) -> None:
    found = flaw(row, STRICT)
    assert (found and found.reason) == reason
    by_default = flaw(row, SECTION)
    assert (by_default and by_default.reason) == (reason if reason == "empty" else None)
    noted = [each.reason for each in flaws(row, SECTION) if not each.drops]
    assert noted == ([reason] if reason in ("too short", "echo", "cut") else [])


def test_a_limit_tells_by_how_much_and_which_option_it_is() -> None:
    found = flaw(conversation("What is the liver for?", "x" * 5321), STRICT)
    assert found is not None
    assert "5,321" in found.detail
    assert "3,321 more than data.cleaning.max_chars=2000" in found.detail


def test_lengths_count_for_the_language() -> None:
    assert flaw(conversation("发烧怎么办？", "多喝水"), STRICT) is None
    assert flaw(conversation("Why?", "So."), STRICT) is not None
    found = flaw(conversation("问", "答" * 1500), STRICT)
    assert found is not None
    assert found.size == 3000


def test_signs_alone_are_no_echo_and_calls_of_tools_are_no_empty_turn() -> None:
    assert list(flaws(conversation("Is it good, then? 👍👍👍", "👍"), SECTION)) == []
    assert flaw(conversation("👍👍👍👍👍", "👎👎👎👎👎"), STRICT) is None
    calls = Conversation(
        (
            Message("user", "Look it up for me."),
            Message("assistant", "", tool_calls=(ToolCall("find", "{}"),)),
            Message("tool", ""),
            Message("assistant", "There is nothing."),
        ),
        "rows.jsonl:1",
    )
    assert flaw(calls, STRICT) is None


def test_limits_that_are_off_do_not_count() -> None:
    open_section = CleaningSection(min_chars=0, max_chars=None, echoes="keep", cut_answers="keep")
    for answer in ("x" * 9999, "Why?", "It is. It also is the"):
        assert list(flaws(conversation("Why?", answer), open_section)) == []


@pytest.mark.parametrize(
    "answer",
    [
        "The heart pumps blood. It has four chambers and the",
        "The heart pumps blood. It has four chambers, two of which are",
        "Rest helps. Then drink water,",
        "Rest helps.\nThen drink water and avoid (",
    ],
)
def test_answers_that_stop_in_a_sentence_are_cut(answer: str) -> None:
    assert is_truncated(answer)
    assert is_truncated(answer, likely=True)


def test_a_last_sentence_without_a_full_stop_is_cut_only_likely() -> None:
    answer = "Rest helps. Drink water. See a doctor if it lasts for more than a few days"
    assert not is_truncated(answer)
    assert is_truncated(answer, likely=True)


@pytest.mark.parametrize(
    "answer",
    [
        "Aspirin",
        "Aspirin and clopidogrel",
        "Type A",
        "Vitamin A",
        "The enzyme is deficient in",
        "Hepatitis B. Hepatitis A",
        "Rest helps. Drink water.",
        'He said "rest."',
        "Causes:\n- smoking\n- the",
        "1. Rest\n2. Water\n3. Sleep",
        "It is rare. See https://example.org/page",
        "Is it so? Yes! Certainly (rarely)",
        "血液循环。",
        "The dose is 5 mg. Take it with food. Then 10 mg",
        "It is common. One in ten has it. The average age at diagnosis is 55.2",
        "It may be unknown. Smoking adds to it. Some cases are idiopathic (of no known cause)",
        "Press here. It goes on. Then switch it on",
        "It is rare. Not all doctors know it. For more about it visit Smokefree.gov",
    ],
)
def test_whole_answers_are_not_cut(answer: str) -> None:
    assert not is_truncated(answer)
    assert not is_truncated(answer, likely=True) or answer.endswith(" on")


SENTENCE = "These resources address the diagnosis or management of the disease:"


def test_sentences_that_open_or_end_many_answers_go() -> None:
    boilerplate = Boilerplate()
    rows = [
        conversation("q?", f"{SENTENCE} Finding number {number} is what counts here.") for number in range(MIN_ROWS)
    ]
    rows.append(conversation("q?", f"Something else entirely is said here. {SENTENCE}"))
    rows.append(conversation("q?", SENTENCE))
    for row in rows:
        boilerplate.count(row)
    assert boilerplate.find() == 0  # what ends in a colon announces the rest
    for row in (changed := [map_texts(row, lambda text: text.replace(":", ".")) for row in rows]):
        boilerplate.count(row)
    assert boilerplate.find() == 1
    assert boilerplate.strip(changed[3]).answer.content == "Finding number 3 is what counts here."
    assert boilerplate.strip(changed[-2]).answer.content == "Something else entirely is said here."
    assert boilerplate.strip(changed[-1]) is changed[-1]
    (told,) = boilerplate.sentences()
    assert (told["text"], told["answers"], told["opens"], told["ends"]) == (SENTENCE.replace(":", "."), 2, 1, 1)


def test_what_stands_behind_boilerplate_keeps_its_indentation() -> None:
    boilerplate = Boilerplate()
    opening = SENTENCE.replace(":", ".")
    rows = [conversation("q?", f"{opening}\n\n    return {number}\n") for number in range(MIN_ROWS)]
    for row in rows:
        boilerplate.count(row)
    assert boilerplate.find() == 1
    assert boilerplate.strip(rows[7]).answer.content == "    return 7"


def test_short_sentences_and_rare_ones_stay() -> None:
    boilerplate = Boilerplate()
    for number in range(3000):
        rare = SENTENCE[:-1] + "." if number < 25 else f"This one is said in row {number} and nowhere else."
        boilerplate.count(conversation("q?", f"Yes, it is. Then number {number} matters most of all. {rare}"))
    assert boilerplate.find() == 0


@pytest.mark.parametrize(
    ("text", "kind", "masked"),
    [
        ("Write to jane.doe@clinic.example.org today", "e-mail", "Write to [e-mail] today"),
        ("Call +44 20 7946 0958 now", "telephone", "Call [telephone] now"),
        ("Call (555) 123-4567.", "telephone", "Call [telephone]."),
        ("Call 555-123-4567.", "telephone", "Call [telephone]."),
        ("DOB: 12/03/1961, female", "date of birth", "DOB: [date of birth], female"),
        ("She was born on 3 March 1961.", "date of birth", "She was born on [date of birth]."),
        ("Date of birth 1961-03-12", "date of birth", "Date of birth [date of birth]"),
        ("MRN: 00482913, seen", "record number", "MRN: [record number], seen"),
        ("patient ID A-29481 came", "record number", "patient ID [record number] came"),
        ("NHS number 943 476 5919", "record number", "NHS number [record number]"),
        ("078-05-1120 is his", "social security number", "[social security number] is his"),
    ],
)
def test_personal_data_is_found_and_masked(text: str, kind: str, masked: str) -> None:
    assert mask_personal_data(text) == (masked, {kind: 1})
    assert mask_personal_data(masked) == (masked, {})


@pytest.mark.parametrize(
    "text",
    [
        "Give 500-1000 mg every 4-6 hours, at most 4,000 mg in 24 hours.",
        "In 1995-1999 there were 120 000 000 cases; p = 0.000123456789.",
        "PMID 12345678, doi 10.1056/NEJM199501053320101",
        "A 45-year-old man; born prematurely at 32 weeks in 1990.",
        "blood pressure 120/80 mmHg, pulse 72, temperature 37.5",
        "ICD-10-CM code E11.9 and chromosome 22q11.2",
        "the patient number rose to 300 in the case of 10",
        "UniProt P12345-2, NCT01234567",
        "The interaction of CD4+ cells @ 37 degrees",
    ],
)
def test_medical_figures_are_nobodys_data(text: str) -> None:
    assert mask_personal_data(text) == (text, {})
