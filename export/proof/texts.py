"""Texts that reveal differences between tokenizers: rows, scripts, emoji, code, white space, empty and long texts."""

import random
from collections.abc import Sequence

HAND_PICKED = (
    "",
    " ",
    "\n",
    "\n\n\n",
    " \t \n  x\r\n",
    "a" * 20_000,
    "word " * 5_000,
    "The dose is 12.5 mg/kg q8h; don't exceed 1,000,000 IU (≈ 3½ vials).",
    "I'll we've they're he'd it's I'm CAN'T 'tis o'clock",
    "1234567890 0.001 1e-4 1/2 ½ ² ₂ Ⅷ ٣ १२३",
    "naïve café Ångström coöperate e\u0301 \u1e9b\u0323 ﬁ",
    "Größe, Straße, œdème, señor, čeština, żółć, İstanbul",
    "Ελληνικά кириллица עברית العربية हिन्दी বাংলা ไทย 한국어 日本語 中文，句号。",
    "😀👩🏽‍⚕️👨‍👩‍👧🏴󠁧󠁢󠁥󠁮󠁧󠁿🫀❤️‍🩹 ☠️ ♂ ✓ → ∑∫√≠≤",
    "\u200b\u200d\ufeff\u00ad\u2028\u2029\u00a0\u3000",
    "zero\u0000byte and \u0007 bell \u001b[31mred",
    "\U0010ffff \ue000 \ufffd",
    "def f(x: int) -> int:\n    return x ** 2  # square\n\n\nprint(f(3))\n",
    "<html><body class='a'>&amp; &lt;p&gt;</body></html>",
    'SELECT * FROM t WHERE a >= 3 AND b != "x"; -- comment',
    '{"a": [1, 2.5, null, true], "b": {"c": "\\u00e9"}}',
    "C:\\Users\\x\\file.txt /usr/local/bin ../../etc https://example.org/?q=1&r=2#top",
    "<think>\nFirst, consider.\n</think>\n\nAnswer.",
    "user\nassistant\nsystem\n[INST] [/INST] <<SYS>> ### Response:",
    "....... ------- ======= !!!!! ????? ***bold*** __under__ ~~~",
    "ALLCAPS camelCase snake_case kebab-case PascalCase x86_64 SARS-CoV-2 IL-6 CD4+ HbA1c",
)
RANGES = ((32, 126), (160, 591), (880, 1279), (1424, 1791), (2304, 2559), (8192, 8303), (8592, 8959), (19968, 20991),
          (44032, 44543), (127744, 128591))  # fmt: skip


def proof_texts(rows: Sequence[str], special_tokens: Sequence[str], count: int, seed: int = 0) -> list[str]:
    """`count` texts: the hand-picked, each special token in a sentence, rows, and random mixes for the rest."""
    draw = random.Random(seed)  # noqa: S311 - test texts, no secret
    texts = list(HAND_PICKED)
    texts += [f"before{token}after {token}\n{token}" for token in special_tokens[: count // 4]]
    room = count - len(texts)
    texts += draw.sample(list(rows), min(len(rows), room // 2))
    texts += [_mix(draw) for _ in range(count - len(texts))]
    return texts[:count]


def _mix(draw: random.Random) -> str:
    """A random text of up to 200 characters, in runs of one script or of white space."""
    parts = []
    for _ in range(draw.randint(1, 10)):
        low, high = draw.choice(RANGES)
        parts.append("".join(chr(draw.randint(low, high)) for _ in range(draw.randint(1, 18))))
        parts.append(draw.choice(("", " ", "  ", "\n", "\t", " \n ")))
    return "".join(parts)
