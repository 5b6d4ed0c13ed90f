"""What IFEval's own checks say of some answers: the oracle of `tests/audit/test_instructions.py`.

Run it from the root of the repository where if-verifiable 0.1.2 is installed (Apache-2.0: Google's published checks as
a package, with `datasets` and NLTK behind it, for which no test should have to wait):

    python -m benchmarks.peers.instructions tests/audit/ifeval.json

Left out are the language of an answer, which is not checked here either, and what asks a tokenizer whose training data
no package has: sentences, and words in capitals.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from if_verifiable.ifeval import INSTRUCTION_DICT

ASKED: dict[str, tuple[dict[str, Any], ...]] = {
    "punctuation:no_comma": ({},),
    "length_constraints:number_words": (
        {"relation": "at least", "num_words": 9},
        {"relation": "less than", "num_words": 4},
    ),
    "length_constraints:number_paragraphs": ({"num_paragraphs": 1}, {"num_paragraphs": 2}, {"num_paragraphs": 3}),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "Red"},
        {"num_paragraphs": 3, "nth_paragraph": 3, "first_word": "last"},
    ),
    "detectable_format:number_bullet_lists": ({"num_bullets": 1}, {"num_bullets": 2}, {"num_bullets": 3}),
    "detectable_format:number_highlighted_sections": ({"num_highlights": 1}, {"num_highlights": 2}),
    "detectable_format:multiple_sections": (
        {"section_spliter": "SECTION", "num_sections": 2},
        {"section_spliter": "Day", "num_sections": 1},
    ),
    "detectable_format:json_format": ({},),
    "detectable_format:title": ({},),
    "detectable_format:constrained_response": ({},),
    "detectable_content:number_placeholders": ({"num_placeholders": 1}, {"num_placeholders": 2}),
    "detectable_content:postscript": (
        {"postscript_marker": "P.S."},
        {"postscript_marker": "P.P.S"},
        {"postscript_marker": "Note:"},
    ),
    "keywords:existence": ({"keywords": ["red", "blue"]}, {"keywords": ["cat"]}),
    "keywords:forbidden_words": ({"forbidden_words": ["cat"]}, {"forbidden_words": ["red", "dog"]}),
    "keywords:frequency": (
        {"keyword": "red", "frequency": 2, "relation": "at least"},
        {"keyword": "la", "frequency": 3, "relation": "less than"},
    ),
    "keywords:letter_frequency": (
        {"letter": "e", "let_frequency": 4, "let_relation": "at least"},
        {"letter": "R", "let_frequency": 2, "let_relation": "less than"},
    ),
    "change_case:english_capital": ({},),
    "change_case:english_lowercase": ({},),
    "startend:end_checker": ({"end_phrase": "That is all."}, {"end_phrase": "blue"}),
    "startend:quotation": ({},),
    "combination:two_responses": ({},),
    "combination:repeat_prompt": ({"prompt_to_repeat": "Say it."}, {"prompt_to_repeat": "Name a colour, please."}),
}
ANSWERS = (
    "Red and blue.",
    "Red, blue.",
    "red is the colour of the cat, and blue is that of the sea.",
    "the cat is as red as the other cats are, and nobody knows why that is so.",
    "THE CAT IS AS RED AS THE OTHER CATS ARE AND NOBODY KNOWS WHY THAT IS SO.",
    "Concatenate the red dog's name with that of the blue dog.",
    "one two-three four_five",
    "It costs 2.50, e.g. in Dr. Smith's shop! Does it? Yes...",
    "First there was the one.\n\nThen, there was the other.",
    "First there was the one.\n\n\n\nthen there was the other.",
    "First.\n\n'Then' came the second.\n\nlast? It was the third.",
    "\n\nRed was the first.\n\n",
    "First part.\n***\nSecond part.",
    "First part.\n***\nSecond part.\n***\n",
    "First part.\n***\n***\nSecond part.",
    "***\nFirst part.\n***\nSecond part.\n***\nThird part.",
    "* one\n* two",
    "* one\n- two\n  * three",
    "** bold ** and\n* one\n-- a line",
    "*** one\n*two\n-three",
    "This is *red* and this is **blue**.",
    "This is ** ** and *  * and *never\nclosed*.",
    "*one* *two* ***three***",
    "SECTION 1\nIt begins.\nSECTION 2\nIt ends.",
    "SECTION one\nIt begins.\nSection 2\nIt ends. SECTION3 more",
    "Day 1: red. Day 2: blue.",
    '{"red": 1, "blue": [true, null]}',
    '```json\n{"red": 1}\n```',
    "```JSON\n[1, 2]\n```",
    "```\n{'red': 1}\n```",
    "Here it is:\n```json\n{}\n```",
    "3",
    "<<A song of the sea>>\nLa la la.",
    "<< >>\nla la",
    "<<one\ntwo>> <<>>",
    "I think so. My answer is yes.",
    "my answer is no.",
    "My answer is maybe, I think.",
    "Dear [name], come to [town] on [date].",
    "Dear [], come to [a\nb].",
    "Bye.\nP.S. Write soon.",
    "Bye.\nP. S. Write soon.",
    "Bye. p.s. write soon",
    "Bye.\nPS: write soon.",
    "Bye.\nP.P.S Write soon.",
    "Bye.\nP. P. S. Write soon.\nNote: it is late.",
    "note: it is late.",
    "La la la, red red, lalala.",
    "So it is. That is all.",
    'So it is. "That is all."',
    "So it is. That is all. Bye.",
    "  that is all.  ",
    "Everything there was blue",
    '"Everything there was blue"',
    "'Everything there was blue'",
    '"',
    '  "Red" and "blue"  ',
    "one\n******\ntwo",
    "one\n******\none",
    "one\n******\ntwo\n******\nthree",
    "******one******two******",
    "one******  ******two",
    "Say it. It.",
    "say it. It.",
    "It. Say it.",
    "Name a colour, please. Red.",
    "Name a colour please. Red.",
    "nothing is written here in capitals, as everybody can see who reads it.",
    "Äpfel und Öl, sagt er; the Émigré reads naïve texts.",
    "tabs\tand\u00a0spaces  of  many\u2009kinds",
)


def main() -> None:
    """Write which answers keep what, to the file that the first argument names."""
    cases = [
        {"kind": kind, "asked": asked, "kept": [bool(keeps(kind, asked, answer)) for answer in ANSWERS]}
        for kind, some in ASKED.items()
        for asked in some
    ]
    found = {"source": "if-verifiable 0.1.2", "answers": ANSWERS, "cases": cases}
    Path(sys.argv[1]).write_text(json.dumps(found, ensure_ascii=False) + "\n", encoding="utf-8")


def keeps(kind: str, asked: dict[str, Any], answer: str) -> bool | None:
    """Let IFEval's check of a kind look at an answer."""
    check = INSTRUCTION_DICT[kind](kind)
    check.build_description(**asked)
    kept: bool | None = check.check_following(answer)
    return kept


if __name__ == "__main__":
    main()
