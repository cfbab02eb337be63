"""`/v1/responses` as a store: read again, gone on from, referred to."""

from __future__ import annotations

from typing import Any

from api.live import Live, refused
from api.test_responses import INPUT, USER, post, respond, said_in_chat, text_of


def test_a_stored_response_is_read_and_forgotten(live: Live) -> None:
    made = respond(live)
    assert made["store"] is True
    path = f"/v1/responses/{made['id']}"
    assert live.http.get(path).json() == made
    items = live.http.get(f"{path}/input_items").json()
    (item,) = items["data"]
    assert item["content"] == [{"type": "input_text", "text": INPUT}]
    assert (items["object"], items["has_more"]) == ("list", False)
    assert items["first_id"] == items["last_id"] == item["id"]
    refused(live.http.get(path, params={"stream": True}), 400, "unsupported_parameter")
    refused(live.http.post(f"{path}/cancel"), 400, "invalid_request")
    deleted = live.http.delete(path)
    assert deleted.json() == {"id": made["id"], "object": "response", "deleted": True}
    for answer in (
        live.http.get(path),
        live.http.delete(path),
        live.http.post(f"{path}/cancel"),
        live.http.get(f"{path}/input_items"),
    ):
        refused(answer, 404, "response_not_found")


def test_pages_of_input_items(live: Live) -> None:
    made = respond(live, input=[{"role": "user", "content": str(one)} for one in range(5)])
    path = f"/v1/responses/{made['id']}/input_items"

    def page(**params: Any) -> tuple[list[str], bool]:
        found = live.http.get(path, params=params).json()
        return [one["content"][0]["text"] for one in found["data"]], found["has_more"]

    assert page() == (["4", "3", "2", "1", "0"], False)
    assert page(order="asc", limit=2) == (["0", "1"], True)
    third = live.http.get(path, params={"order": "asc"}).json()["data"][2]["id"]
    assert page(order="asc", after=third) == (["3", "4"], False)
    refused(live.http.get(path, params={"limit": 0}), 400, "invalid_request")
    refused(live.http.get(path, params={"after": "nothing"}), 400, "invalid_request")


def test_items_are_listed_whole_though_clients_send_less(live: Live) -> None:
    call = {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "a", "output": "B"}
    said = {"role": "assistant", "content": "A", "status": None}
    made = respond(live, input=[USER, said, call, result])
    path = f"/v1/responses/{made['id']}/input_items?order=asc"
    items = live.http.get(path).json()["data"]
    assert [item["status"] for item in items] == ["completed"] * 4
    assert [item["id"].split("_")[0] for item in items] == ["msg", "msg", "fc", "fco"]
    assert items[1]["content"] == [{"type": "output_text", "text": "A", "annotations": []}]


def test_what_is_not_to_be_stored_is_not(live: Live) -> None:
    made = respond(live, store=False)
    assert made["store"] is False
    refused(live.http.get(f"/v1/responses/{made['id']}"), 404, "response_not_found")
    answer = post(live, previous_response_id=made["id"])
    error = refused(answer, 400, "previous_response_not_found")
    assert error["param"] == "previous_response_id"


def test_a_response_goes_on_from_another(live: Live) -> None:
    first = respond(live)
    said = {"role": "assistant", "content": text_of(first)}
    more = {"role": "user", "content": "And then?"}
    second = respond(live, input="And then?", previous_response_id=first["id"])
    assert second["previous_response_id"] == first["id"]
    expected = said_in_chat(live, USER, said, more)
    assert text_of(second) == expected["choices"][0]["message"]["content"]
    assert second["usage"]["input_tokens"] == expected["usage"]["prompt_tokens"]
    # It has all of the conversation, whatever becomes of the first.
    assert live.http.delete(f"/v1/responses/{first['id']}").status_code == 200
    third = respond(live, input="Why?", previous_response_id=second["id"])
    given = live.http.get(f"/v1/responses/{third['id']}/input_items?order=asc").json()["data"]
    assert [item["role"] for item in given] == ["user", "assistant", "user", "assistant", "user"]
    assert given[1] == first["output"][0]
    # A mistake is told by its place in what was sent.
    wrong = post(live, input=[{"role": "x", "content": ""}], previous_response_id=third["id"])
    assert "input[0].role" in refused(wrong, 400, "invalid_request")["message"]


def test_items_as_clients_send_them_back(live: Live) -> None:
    first = respond(live)
    item = first["output"][0]
    more = {"role": "user", "content": [{"type": "input_text", "text": "And then?"}]}
    user = {"type": "message", **USER}
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": None}
    whole = respond(live, input=[user, thought, item, more])
    reference = {"type": "item_reference", "id": item["id"]}
    assert text_of(respond(live, input=[user, reference, more])) == text_of(whole)
    twice = post(live, input=[user, reference, more, reference])
    assert "referenced twice" in refused(twice, 400, "invalid_request")["message"]
    said = {"role": "assistant", "content": text_of(first)}
    assert text_of(respond(live, input=[user, said, more])) == text_of(whole)
    refusal = {"type": "refusal", "refusal": text_of(first)}
    refusing = {"role": "assistant", "content": [refusal]}
    assert text_of(respond(live, input=[user, refusing, more])) == text_of(whole)
    expected = said_in_chat(live, USER, said, {"role": "user", "content": "And then?"})
    assert text_of(whole) == expected["choices"][0]["message"]["content"]
