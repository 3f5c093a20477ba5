"""Every refusal is a problem document."""

from __future__ import annotations

from tests.ingress import EXTENSION, problem, run, served


def test_unknown_paths_wrong_methods_and_refused_preflights_are_problems() -> None:
    async def test() -> None:
        async with served() as (client, _):
            problem(await client.get("/nothing"), 404)
            for path in ("/predict/", "/jobs/", "/page"):
                problem(await client.post(path, headers={"Host": "elsewhere.example"}), 404)
            for path, methods in {"/predict": "POST", "/docs": "GET, HEAD", "/page/predict": "GET, HEAD"}.items():
                refused = await client.delete(path)
                problem(refused, 405)
                assert refused.headers["allow"] == methods
            for path in ("/", "/docs", "/usage", "/openapi.json", "/page/page.js"):
                assert (await client.head(path)).status_code == 200, path
            preflight = {"Access-Control-Request-Method": "POST"}
            problem(await client.options("/predict", headers={"Origin": "https://a.example", **preflight}), 400)
            allowed = await client.options("/predict", headers={"Origin": EXTENSION, **preflight})
            assert allowed.status_code == 200
            assert allowed.headers["access-control-allow-origin"] == EXTENSION

    run(test)


def test_a_problem_names_its_request() -> None:
    async def test() -> None:
        async with served() as (client, _):
            refused = await client.post("/predict", headers={"X-Request-ID": "mine"})
            assert problem(refused, 422).request_id == "mine"

    run(test)
