"""Chat templates, as those of models on Hugging Face are written."""

import json

import jinja2
import pytest

from maxfdl.errors import UserError
from maxfdl.inference import chat, chat_worker
from maxfdl.inference.chat import ChatTemplate
from tests.goldens import tokenizers as goldens

GOLDEN = goldens.read("chats.json")
QUESTION = [{"role": "user", "content": "<b>Why?</b>"}]


def render(source, messages=QUESTION, **special):
    return ChatTemplate(source, special).render(messages)


@pytest.fixture
def in_this_process(monkeypatch):
    """Renders without a process for each, to save its 0.1 s."""

    def rendered(self, template, variables):
        try:
            return chat_worker.render(template, variables)
        except jinja2.TemplateError as error:
            raise UserError(str(error)) from None

    monkeypatch.setattr(ChatTemplate, "_rendered", rendered)


@pytest.mark.parametrize("kind", GOLDEN["chats"])
@pytest.mark.parametrize("name", GOLDEN["templates"])
def test_a_template_renders_as_in_transformers(name, kind, in_this_process):
    template = ChatTemplate(GOLDEN["templates"][name], GOLDEN["special"])
    expected = GOLDEN["rendered"][name][kind]
    if expected is None:
        with pytest.raises(UserError):
            template.render(**GOLDEN["chats"][kind])
    else:
        assert template.render(**GOLDEN["chats"][kind]) == expected


def test_a_question_is_rendered_in_a_process_up_to_where_the_answer_begins():
    question = {"role": "user", "content": "Wieso, 日本 \ud83d?", "name": None}
    source = "{{ bos_token }}{{ messages[0] | tojson }}{% if add_generation_prompt %}A:"
    text = render(source + "{% endif %}", [question], bos_token="<s>")
    assert text == '<s>{"role": "user", "content": "Wieso, 日本 \ud83d?"}A:'


ENDLESS = (
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"
)
DOUBLING = (
    "{% set ns = namespace(x='ab') %}{% for i in range(60) %}"
    "{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
)


@pytest.mark.parametrize(
    "source, message",
    [
        ("{{ raise_exception('no system') }}", r"this conversation \(no system\)"),
        ("{% for %}", "use --nochat"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        (ENDLESS, "took more than 1 s of a processor, as if it looped without end"),
        ("{{ 'a' * 10**10 }}", "it needs too much memory"),
        (DOUBLING, "it needs too much memory|took more than 1 s of a processor"),
        ("{{ 'a' | center(10**10) }}", "it needs too much memory"),
        ("{{ '%10000000000d' % 1 }}", "it needs too much memory"),
        ("{{ range(10**9) | list }}", "Range too big"),
        ("{{ 'a' * 2**25 }}", "it makes 33,554,432 characters"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself without end"),
        ("{{ " + "(" * 10**5 + "1" + ")" * 10**5 + " }}", "nested too deeply"),
    ],
)
def test_what_a_template_may_not_do_is_one_sentence(source, message, monkeypatch):
    monkeypatch.setattr(chat, "CPU_SECONDS", 1)
    with pytest.raises(UserError, match=message) as error:
        render(source)
    assert str(error.value).startswith("the chat template ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": {"chat_template": "{{ bos_token }}!"}},
        {
            "tokenizer_config.json": {
                "chat_template": [
                    {"name": "tools", "template": "?"},
                    {"name": "default", "template": "{{ bos_token }}!"},
                ]
            }
        },
        {"tokenizer_config.json": {"chat_template": {"default": "{{ bos_token }}!"}}},
        {
            "chat_template.jinja": "{{ bos_token }}!",
            "tokenizer_config.json": {"chat_template": "old"},
        },
        {
            "chat_templates/default.jinja": "{{ bos_token }}!",
            "chat_templates/tool_use.jinja": "?",
            "tokenizer_config.json": {},
        },
    ],
    ids=["text", "list", "object", "file", "folder"],
)
def test_a_template_is_found_beside_the_tokenizer(files, tmp_path, in_this_process):
    files["tokenizer_config.json"]["bos_token"] = {"content": "<s>"}
    (tmp_path / "chat_templates").mkdir()
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text)
    template = ChatTemplate.of_folder(tmp_path)
    assert template is not None
    assert template.render(QUESTION) == "<s>!"


def test_a_folder_may_have_none(tmp_path):
    assert ChatTemplate.of_folder(tmp_path) is None


def test_conversations_with_tools_have_a_template_of_their_own(in_this_process):
    template = ChatTemplate({"default": "plain", "tool_use": "{{ tools }}"}, {})
    assert template.render(QUESTION) == "plain"
    assert template.render(QUESTION, tools=[]) == "[]"


def test_templates_without_a_default_are_named(in_this_process):
    with pytest.raises(UserError) as error:
        ChatTemplate({"rag": "", "tool_use": ""}, {}).render(QUESTION)
    assert str(error.value) == (
        "the chat template has no default, but only rag, tool_use; mend it, or use"
        " --nochat to continue plain text."
    )
