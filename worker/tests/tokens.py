"""Ids from transformers 5, for worker/src/model/tokenizer/tests.rs.

tokens.py table [CLIP]      writes tokens.json beside this file; ids of CLIP's own vocabulary too, if CLIP is its folder
tokens.py ids FOLDER        reads a JSON list of prompts, writes a JSON list of their ids
tokens.py clip WHEEL CLIP   makes the folder CLIP of the vocabulary in the wheel of open_clip_torch
"""

import gzip
import json
import pathlib
import sys
import zipfile

HERE = pathlib.Path(__file__).parent
TINY = HERE / "../../tests/golden/tiny-sdxl"

PROMPTS = [
    # Latin
    "", " ", "a photograph of an astronaut riding a horse", "  leading, trailing  and   inner spaces  ",
    "mountains at sunset, détail élevé 4k!!", "naïve façade coöperate Ünïcödé", "STRASSE Straße ẞ",
    "Hello!World!!! it's we'll I'VE don't 'S 's", "'", "''''", "it's'", "a'bc'll'd'",
    "masterpiece, (blue eyes:1.2), <lora:foo:0.8>, [x] {y} \\n /w", "@#$%^&*~`|;:\"'<>?,./",
    "’twas “quoted” – em—dash … ™", "&amp; &lt;b&gt; &#39;quoted&#39;", "1234567890 3.14 ½ ² Ⅷ ٣٤ 1,000 100%",
    "aaaaaaa abababab 0x1F600", "ſhort 'ſ K Å", "İstanbul IĞDIR ıçi", "ǅ Ǆ ĲSSEL Ω ẞ ᾳ ΑΙ",
    # other scripts, from left to right and from right to left
    "Привет, мир", "ΟΔΟΣ ΣΑΣ Σ ΑΣ.", "हिन्दी में लिखा", "ภาษาไทย", "ᏣᎳᎩ ꭰ Ꭰ 𐐀 Ⴀ ა",
    "العربية مُشَكَّلَة", "עברית שָׁלוֹם", "\u202bright to left\u202c \u2067isolate\u2069 rtl\u200f ltr\u200e",
    # CJK
    "日本の富士山、夜景", "城堡在山上", "한국어 프롬프트", "日本語の風景 and 山水画 mixed漢字text", "𠀀𠮷 rare 﨑 ideographs",
    "ｆｕｌｌ　ｗｉｄｔｈ ｶﾀｶﾅ", "각 각 ㄱㅏ", "辻\U000e0100 variation",
    # emoji, with joiners, selectors, skin tones, flags, keycaps
    "fox 🦊🔥", "family 👨‍👩‍👧‍👦", "🏔️🌄 ❤️‍🔥", "👍🏽👩🏿‍🚀", "🇫🇷🇯🇵", "1️⃣ #️⃣", "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    # format characters, byte order marks, what is not a character
    "zero\u200bwidth", "join\u200der non\u200cjoiner", "soft\u00adhyphen", "\ufeffbom \ufeff in", "word\u2060joiner",
    "replacement \ufffd private \ue000 unassigned \u0378 x", "non\ufdd0character \uffff", "literal \\ud83d \\u200d",
    "tag\U000e0001\U000e0041", "annotation \ufff9a\ufffab\ufffb",
    # controls and white space
    "tab\tnew\nline\r\nvt\x0bff\x0c nul\x00 del\x7f nel\x85 end", "\x1b[31mred\x1b[0m", "\x00\x01\x02", "\x1c\x1d\x1e\x1f",
    "nbsp\u00a0thin\u2009ideographic\u3000ls\u2028ps\u2029x\u180ey", "\n\n\n", "a \n b",
    # combining marks
    "e\u0301cole cafe\u0301 A\u030angstro\u0308m ﬁ ligature", "a\u0300\u0301\u0302b \u0300lead", "z̸̛̈́a̵͓̿l̷̰̈́g̶̗̈́o̴͚̾", "ẛ̣ Å 각", "q\u0323\u0307 q\u0307\u0323",
    "\u0958 \u2126 \u212a \uf900",
    # special tokens inside
    "<|endoftext|>", "a <|startoftext|> b<|endoftext|>c", "A <|ENDOFTEXT|> b <|StartOfText|>", "<|endoftext|",
    "<|start oftext|>", "x<|endoftext|><|endoftext|>y !<|endoftext|>!", "<|endo\u00adftext|>", "＜|endoftext|＞",
    # the second tokenizer's padding token, and truncation
    "! a ! b", "wow!!! so!cool !", "!" * 90, "x" * 100, "word " * 180, "日本 " * 60, "a! " * 80, "🦊" * 50, "<|endoftext|>" * 80,
]


def ids(tokenizer, prompt):
    return tokenizer(prompt, padding="max_length", max_length=77, truncation=True).input_ids


def dropped(tokenizer, prompt):
    return max(0, len(tokenizer(prompt, add_special_tokens=False).input_ids) - 75)


def short(row):
    """Without the padding: it is the last id, repeated."""
    while len(row) > 1 and row[-1] == row[-2]:
        row.pop()
    return row


def table(clip):
    from transformers import CLIPTokenizer

    load = CLIPTokenizer.from_pretrained
    tokenizers = {"ids": load(TINY / "tokenizer"), "ids_2": load(TINY / "tokenizer_2")}
    if clip:
        tokenizers |= {"clip": load(f"{clip}/tokenizer"), "clip_2": load(f"{clip}/tokenizer_2")}
    rows = []
    for prompt in PROMPTS:
        row = {"prompt": prompt} | {key: short(ids(t, prompt)) for key, t in tokenizers.items()}
        rows.append(row | {"dropped": [dropped(t, prompt) for t in tokenizers.values()]})
    lines = ",\n".join(json.dumps(row) for row in rows)
    (HERE / "tokens.json").write_text(f"[\n{lines}\n]\n")


def clip(wheel, folder):
    text = gzip.decompress(zipfile.ZipFile(wheel).read("open_clip/bpe_simple_vocab_16e6.txt.gz")).decode()
    merges = text.splitlines()[1 : 1 + 49152 - 256 - 2]
    printable = [b for b in range(256) if 33 <= b <= 126 or (161 <= b and b != 173)]
    symbols = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    vocab = symbols + [s + "</w>" for s in symbols] + [m.replace(" ", "") for m in merges]
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    for name in ["tokenizer", "tokenizer_2"]:
        to = pathlib.Path(folder) / name
        to.mkdir(parents=True, exist_ok=True)
        (to / "vocab.json").write_text(json.dumps({v: i for i, v in enumerate(vocab)}))
        (to / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
        # As in the tiny model, with the ids of this vocabulary.
        config = json.loads((TINY / name / "tokenizer_config.json").read_text())
        listed = config["added_tokens_decoder"].values()
        config["added_tokens_decoder"] = {vocab.index(t["content"]): t for t in listed}
        (to / "tokenizer_config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["table", *rest]:
            table(rest[0] if rest else None)
        case ["ids", folder]:
            from transformers import CLIPTokenizer

            tokenizer = CLIPTokenizer.from_pretrained(folder)
            json.dump([ids(tokenizer, prompt) for prompt in json.load(sys.stdin)], sys.stdout)
        case ["clip", wheel, folder]:
            clip(wheel, folder)
        case _:
            sys.exit(__doc__)
