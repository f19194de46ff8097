"""Chat templates, as those of models on Hugging Face are written."""

import json

import pytest

from maxfdl.errors import UserError
from maxfdl.inference.chat import ChatTemplate

CHATML = """\
{%- for message in messages %}
    {%- if loop.first and message['role'] != 'system' %}
        {{- '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {{- message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
QUESTION = [{"role": "user", "content": "<b>Why?</b>"}]


def render(source, messages=QUESTION, **special):
    return ChatTemplate(source, special).render(messages)


def test_a_question_is_rendered_up_to_where_the_answer_begins():
    assert render(CHATML) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<b>Why?</b>"
        "<|im_end|>\n<|im_start|>assistant\n"
    )


def test_special_tokens_and_the_helpers_of_transformers_are_known():
    source = (
        "{{ bos_token }}{% for m in messages %}{% if loop.index > 1 %}{% break %}"
        "{% endif %}{{ m | tojson }}{% endfor %}{{ strftime_now('%Y') | length }}"
    )
    expected = '<s>{"role": "user", "content": "<b>Why?</b>"}4'
    assert render(source, QUESTION * 2, bos_token="<s>") == expected


@pytest.mark.parametrize(
    "source, message",
    [
        ("{{ raise_exception('no system') }}", r"this conversation \(no system\)"),
        ("{% for %}", "use --nochat"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
    ],
)
def test_what_a_template_may_not_do_is_one_sentence(source, message):
    with pytest.raises(UserError, match=message):
        render(source)


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
        {
            "chat_template.jinja": "{{ bos_token }}!",
            "tokenizer_config.json": {"chat_template": "old"},
        },
    ],
    ids=["text", "list", "file"],
)
def test_a_template_is_found_beside_the_tokenizer(files, tmp_path):
    files["tokenizer_config.json"]["bos_token"] = {"content": "<s>"}
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text)
    template = ChatTemplate.of_folder(tmp_path)
    assert template is not None
    assert template.render(QUESTION) == "<s>!"


def test_a_folder_may_have_none(tmp_path):
    assert ChatTemplate.of_folder(tmp_path) is None
