"""Special tokens, as the files beside a tokenizer.json name them.

The rules are those of transformers 5 (`PreTrainedTokenizerBase._from_pretrained`):

- tokenizer_config.json names tokens by role: `bos_token`, `pad_token` and so on, and
  under any other key that ends in `_token`, such as `image_token`.
- If it has no `added_tokens_decoder`, which newer files have, the names in
  special_tokens_map.json replace its own, and added_tokens.json counts.
- A token is written as its text, or as an object with `content` and flags.
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from maxfdl.outside import Either, Flag, Integer, Listing, Object, Text, Values

if TYPE_CHECKING:
    from tokenizers import AddedToken

ROLES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
_TOKEN = Either(Text(), Object())
_Roles = Mapping[str, "AddedToken | None"]


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """What the side files say of special tokens.

    Args:
      roles: Text by role. None stands for null: the files say that there is none.
      to_add: Tokens to add to the tokenizer, in this order, which gives them their ids.
    """

    roles: Mapping[str, str | None]
    to_add: list["AddedToken"]


def read_special_tokens(
    config: Values,
    special_map: Values,
    added_tokens: Values,
    known: Collection[str],
) -> SpecialTokens:
    """Returns what the three files say.

    Args:
      config: tokenizer_config.json.
      special_map: special_tokens_map.json.
      added_tokens: added_tokens.json.
      known: Texts of the added tokens in tokenizer.json.

    Raises:
      UserError: If a token is neither text nor an object with `content`, and the like.
    """
    roles, others = _roles(config), _others(config, "additional_special_tokens")
    if "added_tokens_decoder" in config:
        to_add = _added_tokens_decoder(config)
    else:
        roles = _merged(roles, _roles(special_map))
        others += map(_special, _others(special_map))
        to_add = _legacy(added_tokens, _usual(roles), others)
        to_add = [token for token in to_add if token.content not in known]
        if not others:
            others = _others(special_map, "additional_special_tokens")
    in_roles = _texts(roles.values())
    for token in to_add:
        token.special = token.special or token.content in in_roles
    known = {*known, *_texts(to_add)}
    # A token that is named twice is added twice: the last flags count.
    named = [*({**_usual(roles), **roles}).values(), *others]
    to_add += [each for each in named if each and each.content not in known]
    texts = {role: token and token.content for role, token in roles.items()}
    return SpecialTokens(texts, to_add)


def _texts(tokens: Iterable["AddedToken | None"]) -> set[str]:
    return {token.content for token in tokens if token is not None}


def _usual(roles: _Roles) -> _Roles:
    """Returns the usual roles, in the order of transformers."""
    return {role: roles[role] for role in ROLES if role in roles}


def _merged(config: _Roles, special_map: _Roles) -> _Roles:
    """Returns the roles of both files.

    Of a usual role special_tokens_map.json decides, of another tokenizer_config.json.
    """
    return {**special_map, **config, **_usual(special_map)}


def _roles(values: Values) -> _Roles:
    """Returns the token of each role that is there, None where it is null.

    Keys such as `add_bos_token`, which are true or false, are no roles.
    """
    found: dict[str, AddedToken | None] = {}
    for key, value in values.content.items():
        is_token = isinstance(value, str) or isinstance(value, dict)
        if key in ROLES or (key.endswith("_token") and is_token):
            found[key] = None if value is None else _special(_token(values, key))
    if isinstance(values.content.get("extra_special_tokens"), dict):
        extra = values.within("extra_special_tokens")  # roles of multimodal models
        found |= {key: _special(_token(extra, key)) for key in extra.content}
    return found


def _special(token: "AddedToken") -> "AddedToken":
    """Returns the token made special, whatever its flag says."""
    token.special = True
    return token


def _others(values: Values, older_key: str | None = None) -> list["AddedToken"]:
    """Returns the special tokens without a role; the older key counts alone only."""
    for key in filter(None, ("extra_special_tokens", older_key)):
        content = values.content.get(key)
        if content and not isinstance(content, dict):
            each = enumerate(values.take(key, Listing(_TOKEN)))
            listed = {str(number): token for number, token in each}
            inside = Values(values.file, listed, f"{values.prefix}{key}.")
            return [_token(inside, number) for number in listed]
    return []


def _added_tokens_decoder(config: Values) -> list["AddedToken"]:
    """Returns the tokens of `added_tokens_decoder` in the order of their ids."""
    listed = config.within("added_tokens_decoder")
    for key in listed.content:
        if not (key.isascii() and key.isdecimal()):
            raise listed.wrong(f"{key} must be the id of a token")
    ids = sorted(listed.content, key=lambda key: (len(key.lstrip("0")), key))
    return [_token(listed, key) for key in ids]


def _legacy(
    values: Values, usual: _Roles, others: Iterable["AddedToken"]
) -> list["AddedToken"]:
    """Returns the tokens of added_tokens.json, in the order of their ids."""
    from tokenizers import AddedToken

    special = {*_texts(usual.values()), *_texts(others)}
    ids = {text: values.take(text, Integer()) for text in values.content}
    return [
        AddedToken(text, special=text in special, normalized=text not in special)
        for text in sorted(ids, key=ids.__getitem__)
    ]


def _token(values: Values, key: str) -> "AddedToken":
    """Returns one token; it is special if it is text, or if its flag says so."""
    from tokenizers import AddedToken

    if isinstance(text := values.take(key, _TOKEN), str):
        return AddedToken(text, special=True)
    inside = values.within(key)
    content = inside.take("content", Text())
    flags = {name: inside.take(name, Flag()) for name in _FLAGS if name in inside}
    return AddedToken(content, **flags)
