"""Writes chats.json: what transformers renders of chat templates of many kinds.

Run it where transformers is installed; the tests read only the result:

    python tests/goldens/tokenizers/make_chats.py

The templates were written for this test, with what templates of published models use.
"""

import json
import pathlib

from tokenizers import Tokenizer, models

FOLDER = pathlib.Path(__file__).parent

SPECIAL = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "image_token": "<image>",
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Today's <weather> in a 'city'",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
            },
        },
    }
]
DOCUMENTS = [{"title": "Sea", "text": "It is salty."}]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Ü"}}}
CHATS = {
    "question": {"messages": [{"role": "user", "content": "  <b>Why?</b>\n"}]},
    "system": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello", "reasoning": "greet"},
            {"role": "user", "content": "And é 日本?"},
        ]
    },
    "tools": {
        "messages": [
            {"role": "user", "content": "Rain?"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "name": "weather", "content": '{"rain": true}'},
        ],
        "tools": TOOLS,
    },
    "documents": {
        "messages": [{"role": "user", "content": "Salty?"}],
        "documents": DOCUMENTS,
    },
    "parts": {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": "What?"}],
            }
        ]
    },
    "finished": {
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
        ],
        "add_generation_prompt": False,
    },
}

TEMPLATES = {
    "turns": """\
{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' ~ message['role'] ~ '\\n' }}
    {{- message.content ~ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}
""",
    "strict roles": """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}\
{% set rest = messages[1:] %}{% set system = messages[0]['content'] | trim %}\
{% else %}{% set rest = messages %}{% set system = false %}{% endif %}
{% for m in rest %}
{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('roles must alternate: ' ~ m['role']) }}
{% endif %}
{% set content = '<<S>>' + system + '<</S>>' + m['content'] if loop.index0 == 0 and \
system is not false else m['content'] %}
{{ '[INST] ' ~ content | trim ~ ' [/INST]' if m.role == 'user' else \
' ' ~ content ~ ' ' ~ eos_token }}
{% endfor %}
""",
    "generation": """\
{% for message in messages %}{% if message.role == 'assistant' -%}
{% generation %}A: {{ message.content }}{% set inside = 1 %}{% endgeneration %}
{%- else %}U: {{ message.content }}{% endif %}
{% endfor %}{{ inside is defined }}{% if add_generation_prompt %}A: {% endif %}
""",
    "tools": """\
{{- bos_token }}
{%- if tools is not none %}
    {{- '[TOOLS]' ~ (tools | tojson) ~ '[/TOOLS]' }}
    {%- for tool in tools %}{{ tool.function | tojson(indent=2) }}{% endfor %}
{%- endif %}
{%- for m in messages %}
    {%- if m.tool_calls is defined %}
        {%- for call in m.tool_calls %}
            {{- '<call>' ~ (call.function | tojson(separators=(',', ':'), \
sort_keys=true)) ~ '</call>' }}
        {%- endfor %}
    {%- elif m.role == 'tool' %}{{ '<result>' ~ m.content ~ '</result>' }}
    {%- else %}{{ '[' ~ m.role ~ ']' ~ m.content }}{%- endif %}
{%- endfor %}
""",
    "documents": """\
{% if documents %}{% for d in documents %}
{{ loop.index }}. {{ d.title | upper }}: {{ d['text'] }}
{% endfor %}{% elif documents is none %}none{% endif %}
{{ messages[-1].content if messages[-1].content is string else 'parts' }}
""",
    "parts": """\
{% macro text(content) -%}
{% if content is string %}{{ content }}{% else %}{% for part in content %}\
{% if part.type == 'image' %}{{ image_token }}{% elif part['type'] == 'text' %}\
{{ part.text }}{% endif %}{% endfor %}{% endif %}
{%- endmacro %}
{% for m in messages if m.content is defined %}{{ m.role | capitalize }}: \
{{ text(m.content) }}
{% endfor %}
""",
    "reasoning": """\
{% for m in messages %}{% if m.reasoning_content is defined %}\
<think>{{ m.reasoning_content }}|{{ m.thinking }}</think>{% endif %}\
{{ m.get('content', '-') }};{% endfor %}
""",
    "namespaces": """\
{% set ns = namespace(last=-1, seen=[], text='') %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}\
{% endif %}{% set ns.text = ns.text + m.role[0] %}{% endfor %}
{{- ns.last }} {{ ns.text }} {{ messages | map(attribute='role') | join(',') }} \
{{ messages | selectattr('role', 'equalto', 'user') | list | length }} \
{{ messages | rejectattr('role', 'equalto', 'user') | list | count }}
""",
    "loops": """\
{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}\
{% if m.role == 'system' %}{% continue %}{% endif %}{{ loop.index }}/{{ loop.length }}\
{{ ',' if not loop.last }}{% else %}nothing{% endfor %}
{% for key, value in messages[0] | dictsort %}{{ key }}={{ value | string | length }} \
{% endfor %}{% for i in range(3) %}{{ i }}{% endfor %}
""",
    "strings": """\
{% set c = messages[0].content %}{% if c is string %}{{ c.strip().split('?')[0] }}|\
{{ c.replace('b', 'B').startswith(' ') }}|{{ c | replace('<', '&') | trim }}|\
{{ '%s-%03d' % ('a', 7) }}|{{ '{:>4}'.format(7) }}|{{ c.upper()[2:5] }}|\
{{ c.rstrip('\\n') | length }}|{{ ['b', 'a'] | sort | join }}|{{ c | e }}{% endif %}
""",
    "names": """\
{{ bos_token }}|{{ eos_token }}|{{ image_token }}|{{ pad_token is defined }}|\
{{ tools is defined }}|{{ documents is none }}|{{ add_generation_prompt }}|\
{{ builtin | default('none') }}|{{ (strftime_now('%Y') | int) > 2000 }}|\
{{ dict(a=1).items() | list }}|{{ dict.fromkeys(['k'], 2) }}
""",
    "whitespace": """\
   {% if true %}
   kept
   {% endif %}
\t{# a comment #}
a {%+ if true %} b {% endif -%}   c
{{ "x" }}
  {%- raw %} {{ raw }} {% endraw %}

""",
    "arithmetic": """\
{{ (messages | length) * 2 - 1 }} {{ 7 // 2 }} {{ 2 ** 5 }} {{ 7 % 4 }} \
{{ 1.5 | round | int }} {{ [1, 2] + [3] }} {{ 'a' in 'cat' }} {{ not true }} \
{{ 3 is odd }} {{ none is none }} {{ {'a': [1, {'b': none}]} | tojson }} \
{{ 'é<>&\\'' | tojson }} {{ [1, 2.0, true] | tojson(ensure_ascii=true) }}
""",
    "refuses": """\
{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}\
{{ raise_exception('no role ' + m.role) }}{% endif %}{{ m.role }}{% endfor %}
""",
    "undefined": "{{ messages[0].nothing.more }}",
    "unsafe": "{{ ''.__class__.__mro__ }}",
    "private": "{% set ns = namespace(_x=1) %}{{ ns._x }}",
    "mutates": "{{ messages.append(1) }}",
}


def main():
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1})), **SPECIAL
    )

    def render(template, chat):
        try:
            chat = {"add_generation_prompt": True, **chat}
            messages = chat.pop("messages")
            text = tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, **chat
            )
        except Exception:  # what they raise is theirs; that they refuse is tested
            return None
        return text

    rendered = {
        name: {chat: render(template, CHATS[chat]) for chat in CHATS}
        for name, template in TEMPLATES.items()
    }
    result = {
        "special": SPECIAL,
        "chats": CHATS,
        "templates": TEMPLATES,
        "rendered": rendered,
    }
    text = json.dumps(result, ensure_ascii=False, indent=1)
    (FOLDER / "chats.json").write_text(f"{text}\n", "utf-8")
    refused = sum(
        each is None for texts in rendered.values() for each in texts.values()
    )
    print(len(TEMPLATES) * len(CHATS), "renderings,", refused, "refused")


if __name__ == "__main__":
    main()
