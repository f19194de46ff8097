"""Text that comes token by token."""

from maxfdl.data.tokenizers import ByteTokenizer
from maxfdl.inference.text import TextStream


def pieces(ids, decode):
    stream = TextStream(decode)
    return [*(stream.push(i) for i in ids), stream.rest()]


def test_a_character_is_shown_when_it_is_whole():
    ids = list("aä€b".encode())
    assert pieces(ids, ByteTokenizer().decode) == ["a", "", "ä", "", "", "€", "b", ""]


def test_half_a_character_at_the_end_is_shown_last():
    assert pieces([97, 0xE2, 0x82], ByteTokenizer().decode) == ["a", "", "", "\ufffd"]


def test_a_blank_that_belongs_to_a_token_is_kept_between_tokens():
    # As with SentencePiece: the blank before the first word of a text is dropped.
    words = ["▁the", "▁end", "ing", "▁is"]

    def decode(ids):
        return "".join(words[i] for i in ids).replace("▁", " ").removeprefix(" ")

    assert pieces([0, 1, 2, 3], decode) == ["the", " end", "ing", " is", ""]
