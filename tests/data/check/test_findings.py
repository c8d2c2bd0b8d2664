"""What is said of a data set: each finding planted, and silence on what is clean."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from check_builders import chat, make_side, run_check
from data_builders import make_tokenizer

from jaxft.data.check import judge, looks
from jaxft.errors import DataError

WORDS = (
    "the",
    "sea",
    "old",
    "man",
    "boat",
    "fish",
    "sun",
    "bread",
    "king",
    "road",
    "tree",
    "house",
)


def sentence(seed, words=12):
    return " ".join(np.random.default_rng(seed % 2**32).choice(WORDS, words))


def chats(count, start=0):
    return [chat(sentence(seed), sentence(seed + 10_000)) for seed in range(start, start + count)]


def names(found, level="warning"):
    return [finding.name for finding in found.of_level(level)]


def the(found, name):
    (finding,) = (each for each in found.findings if each.name == name)
    return finding


def test_clean_rows_have_no_finding():
    found = run_check(make_side(chats(50)), make_side(chats(12, start=1000), "eval"))
    assert found.findings == ()
    found.raise_if_meaningless()


def test_rows_that_lose_all_labels_are_counted_with_the_first():
    rows = [*chats(20), chat("fish " * 200, "yes"), chat("sea " * 200, "no")]
    finding = the(run_check(make_side(rows, max_length=400)), "cut_off")
    assert (finding.level, finding.count, finding.places) == ("warning", 2, ("made row 20",))
    assert "400 tokens: 2 of 22 training examples" in finding.found
    assert "data.max_length" in finding.remedy


@pytest.mark.parametrize(("num_long", "level"), [(1, "note"), (5, "warning")])
def test_a_few_cut_examples_are_a_note_and_many_a_warning(num_long, level):
    rows = [*chats(40), *(chat(sentence(-s), sentence(s, 200)) for s in range(1, num_long + 1))]
    finding = the(run_check(make_side(rows, max_length=400)), "truncated")
    assert (finding.level, finding.count) == (level, num_long)


@pytest.mark.parametrize(
    ("overlong", "name", "num_long", "level"),
    [
        ("split", "split", 1, "note"),
        ("split", "split", 5, "note"),
        ("drop", "too_long", 1, "note"),
        ("drop", "too_long", 5, "warning"),
    ],
)
def test_what_becomes_of_long_rows_is_said(overlong, name, num_long, level):
    rows = [*chats(40), *(chat("why?", sentence(seed, 200)) for seed in range(num_long))]
    finding = the(run_check(make_side(rows, max_length=400, overlong=overlong)), name)
    assert (finding.level, finding.count) == (level, num_long)


def test_rows_without_an_answer_are_left_out():
    rows = [*chats(30), {"messages": [{"role": "user", "content": "hi"}]}]
    finding = the(run_check(make_side(rows)), "without_target")
    assert (finding.level, finding.count, finding.places) == ("warning", 1, ("made row 30",))


@pytest.mark.parametrize(("num_copies", "level"), [(1, "note"), (3, "warning")])
def test_copies_are_a_warning_from_one_in_a_hundred_on(num_copies, level):
    rows = chats(150)
    finding = the(run_check(make_side([*rows, *rows[:num_copies]])), "duplicates")
    assert (finding.level, finding.count) == (level, num_copies)
    assert finding.places[0] == "made row 150 = made row 0"


def test_near_copies_are_looked_for_unless_that_is_switched_off():
    rows = [chat(sentence(seed, 30), sentence(-seed - 1, 30)) for seed in range(20)]
    nearly = json.loads(json.dumps(rows[0]))
    nearly["messages"][1]["content"] += "."
    side = make_side([*rows, nearly])
    assert the(run_check(side), "near_duplicates").places == ("made row 20 ~ made row 0",)
    assert run_check(side, near=False).findings == ()


def test_held_out_rows_among_the_training_rows_are_a_warning():
    train = chats(50)
    found = run_check(make_side(train), make_side([train[3], *chats(20, start=900)], "eval"))
    finding = the(found, "held_out_known")
    assert (finding.level, finding.count) == ("warning", 1)
    assert finding.places == ("eval row 0 = made row 3",)
    found.raise_if_meaningless()


def test_one_row_again_and_again_stops_the_run():
    assert names(run_check(make_side(chats(1) * 100)), "stop") == ["one_row"]
    assert names(run_check(make_side(chats(1) * 99)), "stop") == []


def test_blank_answers_only_stop_the_run():
    found = run_check(make_side([chat(sentence(seed), " ") for seed in range(5)]))
    assert names(found, "stop") == ["blank_answers_only"]
    assert "blank_answer" in names(found)


def test_one_answer_to_all_questions_is_doubtful():
    rows = [chat(sentence(seed), "yes") for seed in range(20)]
    assert names(run_check(make_side(rows))) == ["one_answer"]
    assert names(run_check(make_side(rows[:19]))) == []


def test_tokens_that_the_tokenizer_does_not_know_are_a_warning_and_most_of_them_stop():
    tokenizer = make_tokenizer(unk_token="<|eot|>")
    rows = chats(20)
    rows[4]["messages"][0]["content"] += "<|eot|>" * 5
    found = run_check(make_side(rows, tokenizer=tokenizer))
    finding = the(found, "unknown_tokens")
    assert (finding.level, finding.count, finding.places) == ("warning", 1, ("made row 4",))
    mostly = [chat(sentence(s) + "<|eot|>" * 300, sentence(-s)) for s in range(1, 20)]
    assert "unknown_tokens" in names(run_check(make_side(mostly, tokenizer=tokenizer)), "stop")


def test_an_end_token_that_also_stands_for_the_unknown_is_no_unknown_word():
    tokenizer = make_tokenizer(unk_token="<|im_end|>", pad_token="<|im_end|>")
    assert run_check(make_side(chats(20), tokenizer=tokenizer)).findings == ()


def test_an_end_that_is_not_supervised_is_a_warning():
    rows = [
        {"input_ids": [5, 6, seed, 9], "labels": [-100, -100, seed, -100]} for seed in range(20, 50)
    ]
    end = make_tokenizer().eos_token_id
    rows += [
        {"input_ids": [5, 6, seed, end], "labels": [-100, -100, seed, end]}
        for seed in range(50, 60)
    ]
    finding = the(run_check(make_side(rows)), "no_end_learned")
    assert (finding.level, finding.count) == ("warning", 30)
    assert finding.places[0] == "made row 0"


def test_texts_and_cut_replies_need_no_end():
    rows = [{"input_ids": [*range(1, 12)], "labels": [*range(1, 12)]}]
    assert "no_end_learned" not in names(run_check(make_side(rows)))
    long = run_check(make_side([chat("why?", sentence(1, 200)), *chats(40)], max_length=400))
    assert "no_end_learned" not in names(long)


def test_little_that_is_supervised_is_doubtful():
    rows = [chat(sentence(seed, 400), str(seed)) for seed in range(10)]
    assert names(run_check(make_side(rows))) == ["little_learned"]


def test_odd_text_is_a_warning_with_its_places_and_a_remedy():
    rows = chats(30)
    rows[7]["messages"][1]["content"] = "The cafÃ© is open."
    finding = the(run_check(make_side(rows)), "mojibake")
    assert finding.found == "Letters that were decoded wrongly: 1 of 30 training rows."
    assert finding.level == "warning"
    assert finding.places[0].startswith("made row 7: ")
    assert "cafÃ©" in finding.places[0]


def test_fields_that_are_not_used_are_a_note():
    rows = [{**row, "id": number} for number, row in enumerate(chats(20))]
    finding = the(run_check(make_side(rows)), "unused_fields")
    assert finding.level == "note"
    assert "id (20)" in finding.found


def test_few_held_out_rows_are_a_note():
    found = run_check(make_side(chats(30)), make_side(chats(3, start=500), "eval"))
    assert names(found, "note") == ["few_held_out"]


def test_what_is_accepted_is_a_note_and_a_wrong_name_is_refused():
    side = make_side([chat(sentence(seed), "yes") for seed in range(20)])
    found = run_check(side, accepted=["one_answer"])
    assert the(found, "one_answer").level == "note"
    with pytest.raises(DataError, match="one_answr") as error:
        run_check(side, accepted=["one_answr"])
    assert "one_answer" in error.value.remedy


def test_every_finding_has_a_name_that_can_be_accepted():
    for name in ("cut_off", "mojibake", "held_out_nearly_known", "reasoning_left_out"):
        assert name in judge.NAMES
    assert len(set(judge.NAMES)) == len(judge.NAMES)


def test_the_worst_stands_first_and_all_is_json():
    rows = [chat(sentence(seed), " ") for seed in range(5)]
    rows[0]["id"] = 1
    found = run_check(make_side(rows))
    order = [judge.LEVELS.index(finding.level) for finding in found.findings]
    assert order == sorted(order)
    again = json.loads(json.dumps(found.as_json()))
    assert again["train"]["rows"] == 5
    assert again["findings"][0]["name"] == "blank_answers_only"


def test_the_second_check_looks_at_nothing(monkeypatch):
    train, held_out = make_side(chats(20)), make_side(chats(12, start=500), "eval")
    first = run_check(train, held_out)

    def look(*args, **options):
        raise AssertionError("looked again")

    monkeypatch.setattr(looks, "look", look)
    assert run_check(train, held_out) == first
    for other in (make_side(chats(21)), make_side(chats(20), "moved")):
        with pytest.raises(AssertionError, match="looked again"):
            run_check(other, held_out)
    with pytest.raises(AssertionError, match="looked again"):
        run_check(train, held_out, near=False)


def test_what_is_damaged_on_disk_is_looked_at_again(cache_folder):
    side = make_side([*chats(20), *chats(3)])
    first = run_check(side)
    (file,) = (cache_folder / "jaxft").glob("*.check.json")
    file.write_text(file.read_text()[:-5])
    assert run_check(side) == first
    assert dataclasses.asdict(first)["findings"]


def test_progress_counts_to_all_there_is():
    train, held_out = make_side(chats(20)), make_side(chats(12, start=500), "eval")
    counted = []
    looks.look(train, held_out, near=True, advance=counted.append)
    assert sum(counted) == looks.work(train, held_out)
