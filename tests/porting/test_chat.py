"""Chat templates: the same text as transformers, and every way a hostile or broken template can end is an InputError."""

from __future__ import annotations

import json
import re
import time
from datetime import datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from porting.errors import InputError, UsageError
from porting.generation import chat_sandbox
from porting.generation.chat import ChatTemplate, RenderLimits, chat_template_from, json_object

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
USER = [{"role": "user", "content": "Hi"}]
TURNS = [
    {"role": "user", "content": "What is 2 < 3?\n"},
    {"role": "assistant", "content": " It is 'true' & \"certain\". "},
    {"role": "user", "content": "Naïve 你好 😀 {{ 7*7 }} {% raw %}"},
]
WITH_SYSTEM = [{"role": "system", "content": "Be brief."}, *TURNS]

# The template in SmolLM2-135M-Instruct's file (Apache-2.0), and the public styles in words of our own.
TEMPLATES = {
    "smollm2": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + "
        "message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "chatml": """
{%- for turn in messages %}
    {%- if turn.role not in ['system', 'user', 'assistant'] %}{{ raise_exception('unknown role ' ~ turn.role) }}{% endif %}
    {{- '<|im_start|>' ~ turn.role ~ '\n' }}
    {%- if turn.role == 'assistant' %}{% generation %}{{ turn.content | trim }}{% endgeneration %}
    {%- else %}{{ turn.content }}{% endif %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
""",
    "headers": """{{- bos_token }}
{%- set ns = namespace(system='', first=0) %}
{%- if messages[0]['role'] == 'system' %}
    {%- set ns.system = messages[0]['content'] | trim %}
    {%- set ns.first = 1 %}
{%- endif %}
{%- if tools is defined and tools is not none %}{{ 'tools' }}{% endif %}
<|start_header_id|>system<|end_header_id|>

Today: {{ strftime_now('%Y') }}
{{ ns.system }}<|eot_id|>
{% for m in messages[ns.first:] %}
    {%- if m.content is string %}
<|start_header_id|>{{ m['role'] }}<|end_header_id|>

{{ m['content'] | trim }}<|eot_id|>
    {%- endif %}
{% endfor %}
{% if add_generation_prompt %}
<|start_header_id|>assistant<|end_header_id|>

{% endif %}""",
    "inst": """{{ bos_token }}{% set offset = 0 %}
{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set rest = messages[1:] %}
{%- else %}{% set rest = messages %}{% endif %}
{%- for m in rest %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('roles must alternate') }}
{%- endif %}
{%- if m.role == 'user' %}[INST] {% if loop.last and system is defined %}{{ system + '\n\n' }}{% endif %}{{ m.content }} [/INST]
{%- else %}{{ ' ' + m.content + eos_token }}{% endif %}
{%- endfor %}""",
    "json": """{% for m in messages %}
    {% if loop.index > 3 %}
        {% break %}
    {% endif %}
    {{ m | tojson }} {{ m | tojson(indent=2) }} {{ m.content | tojson(ensure_ascii=True) }}
{% endfor %}
{{ dict(a=1, b=[none, true]).items() | list }} {{ pad_token }} {{ "%s|%d" | format("x", 3) }}
""",
}


@pytest.fixture(scope="module")
def upstream():
    """transformers' own rendering. returns: function (template, messages, add_generation_prompt) -> text"""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")), **SPECIAL)

    def render(template: str, messages: list, add_generation_prompt: bool) -> str:
        fast.chat_template = template
        return fast.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)

    return render


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("messages", [USER, TURNS, WITH_SYSTEM], ids=["user", "turns", "system"])
@pytest.mark.parametrize("style", TEMPLATES)
def test_text_is_that_of_transformers(style, messages, add_generation_prompt, upstream):
    template = ChatTemplate(TEMPLATES[style], special_tokens=SPECIAL)
    expected = upstream(TEMPLATES[style], messages, add_generation_prompt)
    assert template.render(messages, add_generation_prompt=add_generation_prompt) == expected
    assert "Hi" in expected or "2 < 3" in expected


def test_no_system_message_is_added():
    assert ChatTemplate("{{ messages | tojson }}").render(USER) == json.dumps(USER)


def test_a_name_that_is_not_set_prints_nothing_as_in_transformers():
    assert ChatTemplate("[{{ nobody }}{{ messages[0].nothing }}]").render(USER) == "[]"


def test_strftime_now_is_todays_date():
    days = {datetime.now().strftime("%d %b %Y")}
    text = ChatTemplate("{{ strftime_now('%d %b %Y') }}").render(USER)
    assert text in days | {datetime.now().strftime("%d %b %Y")}


@pytest.mark.parametrize(
    "payload",
    [
        "{{ ''.__class__ }}",
        "{{ ''['__class__'] }}",
        "{{ '' | attr('__class__') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__globals__['sys'] }}",
        "{{ lipsum.__globals__['os'].popen('id').read() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ namespace.__globals__ }}",
        "{{ self._TemplateReference__context }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ '{x.__class__}'.format_map({'x': 1}) }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ namespace(__init__=1) }}",
        "{% set f = ''.join %}{{ f.__self__ }}",
        "{{ dict.mro() }}",
        "{% for x in [1] if x.__class__ is defined %}{% endfor %}",
    ],
)
def test_reaching_out_of_the_sandbox_is_refused(payload):
    answer = chat_sandbox.render(payload, {"messages": USER}, 1000)
    assert answer.get("kind") == "sandbox", answer


def test_the_sandbox_refusal_reaches_the_user():
    with pytest.raises(InputError, match="reaches for what the sandbox forbids: access to '__class__' of a str") as caught:
        ChatTemplate("{{ ''.__class__ }}", "tokenizer_config.json").render(USER)
    assert caught.value.where == "tokenizer_config.json"
    assert caught.value.exit_code == 2
    assert "chat=False" in caught.value.next


def test_files_and_other_templates_are_out_of_reach():
    for payload in ("{% include '/etc/hostname' %}", "{% import 'os' as os %}", "{% extends 'x' %}"):
        with pytest.raises(InputError):
            ChatTemplate(payload).render(USER)


QUICK = RenderLimits(characters=100_000, cpu_seconds=1, memory_bytes=400 << 20)


@pytest.mark.parametrize(
    ("bomb", "expected"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "more than 1 s of processor time"),
        ("{{ 9 ** (9 ** 9) }}", "more than 1 s of processor time"),
        ("{{ 'x' * 10 ** 10 }}", "needs more than 400 MiB"),
        ("{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}", "needs more than"),
        ("{{ 'x' | center(10 ** 10) }}", "needs more than 400 MiB"),
        ("{% for i in range(99999) %}{{ 'twelve bytes' }}{% endfor %}", "output exceeds 100000 characters"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "RecursionError|ended its process"),
        ("x" * ((1 << 20) + 1), "it has 1048577 bytes, allowed are 1048576"),
    ],
    ids=["loops", "power", "repeat", "doubling", "filter", "output", "range", "macro", "nesting", "size"],
)
def test_a_template_without_end_is_stopped(bomb, expected):
    started = time.monotonic()
    with pytest.raises(InputError, match=f"the chat template cannot be used: .*(?:{expected})"):
        ChatTemplate(bomb).render(USER, limits=QUICK)
    assert time.monotonic() - started < 15  # the limit is 1 s of processor time, on a machine that may be busy


def test_the_template_process_sees_no_environment(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    seen = {}

    def spy(command, **options):
        seen.update(options["env"])
        raise OSError("stop here")

    monkeypatch.setattr("porting.generation.chat.subprocess.run", spy)
    with pytest.raises(Exception, match="cannot be started: stop here"):
        ChatTemplate("x").render(USER)
    assert "SECRET_TOKEN" not in seen


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a\n{% if %}", "syntax error at line 2: Expected an expression"),
        ("{% nonsense %}", "syntax error at line 1: Encountered unknown tag 'nonsense'"),
        ("{{ raise_exception('only \x1b[31mone\nuser') }}", "it refuses these messages: only  \\[31mone user"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages[0].content.nothing.more }}", "has no attribute 'nothing'"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
    ],
)
def test_a_broken_template_says_what_is_wrong(source, expected):
    with pytest.raises(InputError, match=f"the chat template cannot be used: .*{expected}") as caught:
        ChatTemplate(source).render(USER)
    assert caught.value.exit_code == 2
    assert "\x1b" not in str(caught.value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.one_of(
            st.sampled_from(
                ["{{", "}}", "{%", "%}", "{#", "#}", "messages", " for x in ", " if ", "endfor", "endif", "|", "("]
            ),
            st.sampled_from([")", "[0]", ".role", "'", "tojson", " set a = ", "~", "generation", "endgeneration", "\\", "-"]),
            st.text(max_size=4),
        ),
        max_size=14,
    ).map("".join)
)
def test_any_text_as_template_gives_text_or_an_answer(source):
    answer = chat_sandbox.render(source, {"messages": USER}, 10_000)
    assert set(answer) in ({"text"}, {"kind", "message"})
    assert answer.get("kind", "failed") in ("syntax", "refused", "sandbox", "size", "failed")


@settings(max_examples=5, deadline=None)
@given(st.text(max_size=50))
def test_a_message_is_data_whatever_it_holds(text):
    assert ChatTemplate("{{ messages[0].content }}").render([{"role": "user", "content": text}]) == text


@pytest.mark.parametrize(
    "messages",
    ["Hi", [], ["Hi"], [{"content": "x"}], [{"role": "user", "content": object()}], [{"role": "u", "content": 1e999}]],
)
def test_messages_of_another_form_are_refused(messages):
    with pytest.raises(UsageError, match="messages"):
        ChatTemplate("x").render(messages)


def test_where_a_template_is_found():
    def config(**content):
        return {"tokenizer_config.json": json.dumps(content).encode()}

    assert chat_template_from({}) is None
    assert chat_template_from(config(bos_token="<s>")) is None
    found = chat_template_from(config(chat_template="A", bos_token={"content": "<s>"}, eos_token="</s>", pad_token=None))
    assert found == ChatTemplate("A", "tokenizer_config.json", SPECIAL)
    both = {**config(chat_template="A", eos_token="</s>"), "chat_template.jinja": b"B"}
    assert chat_template_from(both) == ChatTemplate("B", "chat_template.jinja", {"eos_token": "</s>"})
    several = config(chat_template=[{"name": "default", "template": "D"}, {"name": "rag", "template": "R"}])
    assert chat_template_from(several).source == "D"
    assert chat_template_from(several, "rag").source == "R"
    with pytest.raises(InputError, match=r"no chat template called 'other'(?s:.*)it has: default, rag"):
        chat_template_from(several, "other")
    for damaged in (7, {"default": "D"}, [{"name": "default"}], [{"name": ["x"], "template": "D"}], ["D"]):
        with pytest.raises(InputError, match="no chat template called 'default'"):
            chat_template_from(config(chat_template=damaged))
    with pytest.raises(InputError, match="not UTF-8"):
        chat_template_from({"chat_template.jinja": b"\xff"})


@settings(max_examples=80, deadline=None)
@given(st.one_of(st.binary(max_size=30), st.sampled_from([b"[" * 100_000, b"[]", b"null", b"1", b'"x"', b"{}", b'{"a":NaN}'])))
def test_any_bytes_as_a_side_file_give_an_object_or_an_error(data):
    try:
        assert isinstance(json_object({"f.json": data}, "f.json"), dict)
    except InputError as error:
        assert re.match(r"this is no JSON|expected a JSON object", error.what)  # noqa: PT017 - either outcome is right
