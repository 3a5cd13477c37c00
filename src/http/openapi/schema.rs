//! Schemas of the API document.

use std::iter;

use aide::{
    generate::GenContext,
    openapi::{Parameter, ParameterData, ParameterSchemaOrContent, PathStyle, QueryStyle, SchemaObject},
};
use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, json_schema};
use serde_json::{Map, Value, json};

const DEFINITIONS: &str = "#/components/schemas/";

/// A generator whose schemas stand below `components` by the names of their types.
pub(super) fn generator() -> SchemaGenerator {
    settings().into_generator()
}

fn settings() -> SchemaSettings {
    SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = DEFINITIONS.into();
        settings.meta_schema = None;
    })
}

/// The schema of what is written from a `T`, and its description. Types below it are added to those of `generator`.
pub(in crate::http) fn schema_of_response<T: JsonSchema>(generator: &mut SchemaGenerator) -> (Schema, String) {
    // The members that are always written are not those that have to be read.
    let mut written = settings().for_serialize().into_generator();
    let schema = written.subschema_for::<T>();
    let mut definitions = written.take_definitions(true);
    for definition in definitions.values_mut() {
        absent_not_null(definition);
    }
    let description = resolve(&definitions, schema.as_value())["description"].as_str().unwrap_or("Done").to_owned();
    generator.definitions_mut().append(&mut definitions);
    (schema, description)
}

/// What a reference points to; any other schema as it is.
fn resolve<'a>(definitions: &'a Map<String, Value>, schema: &'a Value) -> &'a Value {
    let name = schema["$ref"].as_str().and_then(|path| path.strip_prefix(DEFINITIONS));
    name.and_then(|name| definitions.get(name)).unwrap_or(schema)
}

/// A member of a response that may be missing is left out rather than null.
fn absent_not_null(definition: &mut Value) {
    let required = definition["required"].as_array().cloned().unwrap_or_default();
    let members = definition.get_mut("properties").and_then(Value::as_object_mut);
    for (_, member) in members.into_iter().flatten().filter(|(name, _)| !required.contains(&json!(name))) {
        without_null(member);
    }
}

/// Takes null out of what a schema allows.
fn without_null(schema: &mut Value) {
    if let Some(kinds) = schema.get_mut("type").and_then(Value::as_array_mut) {
        kinds.retain(|kind| kind != "null");
        if let [kind] = kinds.as_slice() {
            schema["type"] = kind.clone();
        }
    }
    if let Some(options) = schema.get_mut("anyOf").and_then(Value::as_array_mut) {
        options.retain(|option| option["type"] != "null");
        if let [Value::Object(option)] = options.as_mut_slice() {
            let option = std::mem::take(option);
            if let Some(schema) = schema.as_object_mut() {
                schema.remove("anyOf");
                schema.extend(option);
            }
        }
    }
}

/// A schema of an object with further members, some of them required.
pub(in crate::http) fn with_members(mut schema: Schema, members: &[(&str, Schema)], required: &[&str]) -> Schema {
    let object = schema.ensure_object();
    for (name, member) in members {
        object.entry("properties").or_insert_with(|| json!({}))[*name] = member.clone().to_value();
    }
    if !required.is_empty() {
        object.insert("required".into(), json!(required));
    }
    schema
}

/// The members of `T` as parameters of the path.
pub(in crate::http) fn path_parameters<T: JsonSchema>(context: &mut GenContext) -> Vec<Parameter> {
    members::<T>(context)
        .into_iter()
        .map(|(name, schema)| Parameter::Path { parameter_data: parameter(name, schema, true), style: PathStyle::Simple })
        .collect()
}

/// The members of `T` as parameters of the query.
pub(in crate::http) fn query_parameters<T: JsonSchema>(context: &mut GenContext) -> Vec<Parameter> {
    members::<T>(context)
        .into_iter()
        .map(|(name, schema)| Parameter::Query {
            parameter_data: parameter(name, in_query(context, schema), false),
            allow_reserved: false,
            style: QueryStyle::Form,
            allow_empty_value: None,
        })
        .collect()
}

fn members<T: JsonSchema>(context: &mut GenContext) -> Vec<(String, Value)> {
    let mut schema = T::json_schema(&mut context.schema).to_value();
    let members = schema.get_mut("properties").and_then(Value::as_object_mut).map(std::mem::take);
    members.into_iter().flatten().collect()
}

/// An option as a query holds it: never null, and what is no list of simple values as a string that holds its JSON.
fn in_query(context: &GenContext, mut schema: Value) -> Value {
    without_null(&mut schema);
    let shape = resolve(context.schema.definitions(), &schema);
    let is_json = shape["type"] == "object" || shape["items"]["type"] == "array";
    if let Some(schema) = schema.as_object_mut() {
        default_in_words(schema);
        if is_json {
            add_sentence(schema, "A string that holds its JSON.");
            schema.retain(|name, _| name == "description");
            schema.insert("type".into(), json!("string"));
        }
    }
    // A number is a string there, too.
    if schema["type"].as_array().is_some_and(|kinds| kinds.contains(&json!("string"))) {
        schema["type"] = json!("string");
    }
    schema
}

/// Tells a default in words. As a member of the schema, forms such as Swagger UI's would send it with every request, and
/// openapi-typescript would require it.
fn default_in_words(schema: &mut Map<String, Value>) {
    let Some(default) = schema.remove("default") else { return };
    if !(default.is_null() || default == json!([]) || default == json!({})) {
        let default = default.as_str().map_or_else(|| default.to_string(), str::to_owned);
        add_sentence(schema, &format!("Default: {default}."));
    }
}

fn add_sentence(schema: &mut Map<String, Value>, sentence: &str) {
    let before = schema.get("description").and_then(Value::as_str);
    let description = before.map_or_else(|| sentence.to_owned(), |before| format!("{} {sentence}", before.trim_end()));
    schema.insert("description".into(), description.into());
}

fn parameter(name: String, mut schema: Value, required: bool) -> ParameterData {
    let description = schema.as_object_mut().and_then(|schema| schema.remove("description"));
    let json_schema = schema.try_into().unwrap_or_else(|_| json_schema!(true));
    ParameterData {
        name,
        description: description.and_then(|description| description.as_str().map(str::to_owned)),
        required,
        deprecated: None,
        format: ParameterSchemaOrContent::Schema(SchemaObject { json_schema, external_docs: None, example: None }),
        example: None,
        examples: iter::empty().collect(),
        explode: None,
        extensions: iter::empty().collect(),
    }
}

/// Writes what generators of clients understand: choices of constants, each with its description, as one enumeration, and defaults in
/// words.
pub(super) fn simplify(document: &mut Value) {
    match document {
        Value::Array(values) => values.iter_mut().for_each(simplify),
        Value::Object(members) => {
            members.values_mut().for_each(simplify);
            enumerate(members);
            if members.keys().any(|name| ["type", "$ref", "anyOf"].contains(&name.as_str())) {
                default_in_words(members);
            }
        }
        _ => {}
    }
}

fn enumerate(schema: &mut Map<String, Value>) {
    let Some(choices) = schema.get("oneOf").and_then(Value::as_array) else { return };
    let mut names = Vec::new();
    let mut lines: Vec<String> = schema.get("description").and_then(Value::as_str).map(str::to_owned).into_iter().collect();
    for choice in choices {
        let described = choice["description"].as_str().unwrap_or_default();
        match (choice["const"].as_str(), choice["enum"].as_array()) {
            (Some(name), _) => {
                names.push(json!(name));
                lines.push(format!("- `{name}`: {described}"));
            }
            // Those without a description stand together.
            (None, Some(more)) => names.extend(more.iter().cloned()),
            (None, None) => return,
        }
    }
    schema.remove("oneOf");
    schema.insert("type".into(), json!("string"));
    schema.insert("enum".into(), names.into());
    schema.insert("description".into(), lines.join("\n").into());
}
