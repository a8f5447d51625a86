"""The OpenAPI document describes what is there, all of it, and nothing else."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import jsonschema
import openapi_spec_validator

import litefs.server
from litefs.server.app import create_app
from litefs.server.openapi import document
from litefs.stream.memory import MemoryCatalog
from tests.server.support import FakeNode, client, serving
from tests.server.test_http import filled, run


def test_it_is_a_valid_document_of_all_routes() -> None:
    async def main() -> None:
        async with serving(FakeNode()) as url, client() as http:
            served = (await http.get(f"{url}/openapi.json")).json()
        assert served == document()
        openapi_spec_validator.validate(served)
        described = {(method, path) for path, item in served["paths"].items() for method in item}
        routes = {
            (method.lower(), re.sub(r"<path:(\w+)>", r"{\1}", rule.rule))
            for rule in create_app(FakeNode()).url_map.iter_rules()
            for method in rule.methods or ()
            if method != "HEAD" and (method == "GET" or "GET" not in (rule.methods or ()))
        }
        assert described == routes | {("get", "/")}  # the status page, which stands before the application

    run(main)


def test_each_parameter_is_one_that_the_code_reads() -> None:
    described = {
        parameter["name"]
        for item in document()["paths"].values()
        for operation in item.values()
        for parameter in operation["parameters"]
        if parameter["in"] == "query"
    }
    strings = {
        node.value
        for path in Path(str(litefs.server.__file__)).parent.glob("*.py")
        if path.name != "openapi.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert described - {"filter"} <= strings


def test_a_status_is_as_described() -> None:
    async def main() -> None:
        async with serving(FakeNode(MemoryCatalog(filled("a.db")))) as url, client() as http:
            status = (await http.get(f"{url}/status")).json()
        schemas = document()["components"]["schemas"]
        schema = {"$ref": "#/components/schemas/Status", "components": {"schemas": schemas}}
        jsonschema.validate(status, schema)
        assert set(status["node"]) <= set(schemas["NodeStatus"]["properties"])
        assert set(status["databases"][0]) <= set(schemas["DatabaseStatus"]["properties"])

    run(main)
