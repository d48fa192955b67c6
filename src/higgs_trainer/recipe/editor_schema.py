"""Build the JSON schema of a recipe, with which editors complete fields and mark mistakes.

Write it once with `higgs-trainer recipe-schema > recipe.schema.json`, and point the YAML extension of VS Code (by Red
Hat), or any other editor with yaml-language-server, at it in the first line of a recipe:

    # yaml-language-server: $schema=recipe.schema.json
"""

from dataclasses import fields
from typing import Any

from higgs_trainer.recipe.schema import Recipe
from higgs_trainer.recipe.training_fields import build_adapter, list_extra_names
from higgs_trainer.recipe.training_section import TrainingRecipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def build_json_schema() -> dict[str, Any]:
    """Return the schema, including the fields of `TrainingArguments` that a recipe passes on. Imports transformers."""
    schema = Recipe.model_json_schema()
    properties = schema["$defs"]["TrainingRecipe"]["properties"]
    del properties["extra_arguments"]
    properties |= _describe_extra_arguments()
    for definition in (schema, *schema["$defs"].values()):
        for described in (definition, *definition.get("properties", {}).values()):
            if "description" in described:
                described["description"] = " ".join(described["description"].split())
    return {"$schema": DIALECT, **schema, "title": "Recipe of Higgs Trainer"}


def _describe_extra_arguments() -> dict[str, Any]:
    from transformers.training_args import TrainingArguments

    help_texts = {field.name: field.metadata.get("help", "") for field in fields(TrainingArguments)}
    return {
        name: build_adapter(name).json_schema() | {"description": help_texts.get(name, "").replace("%%", "%")}
        for name in list_extra_names(TrainingRecipe.list_own_fields())
    }
