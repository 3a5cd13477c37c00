//! Filters as SQL. Values and names are parameters, never part of the statement.
//!
//! No condition is ever NULL, so that `NOT` means the opposite.

use serde_json::Value;
use sqlx::types::Json;
use sqlx::{Postgres, QueryBuilder};

use super::super::Filter;
use super::super::filter::{Field, Node, Order, Test};
use super::escape::{json_to_stored, to_stored};
use dino_vision::unicode::nfd;

/// Adds ` WHERE …` where there is a filter.
pub(super) fn push_where(sql: &mut QueryBuilder<Postgres>, filter: Option<&Filter>) {
    if let Some(Filter(node)) = filter {
        sql.push(" WHERE ");
        push(sql, node);
    }
}

fn push(sql: &mut QueryBuilder<Postgres>, node: &Node) {
    match node {
        Node::And(nodes) => push_joined(sql, nodes, " AND "),
        Node::Or(nodes) => push_joined(sql, nodes, " OR "),
        Node::Not(node) => {
            sql.push("(NOT ");
            push(sql, node);
            sql.push(")");
        }
        Node::Field(Field::Id, test) => push_id(sql, test),
        Node::Field(Field::Label, test) => push_label(sql, test),
        Node::Field(Field::Metadata(path), test) => push_metadata(sql, path, test),
    }
}

fn push_joined(sql: &mut QueryBuilder<Postgres>, nodes: &[Node], word: &str) {
    for (position, node) in nodes.iter().enumerate() {
        sql.push(if position == 0 { "(" } else { word });
        push(sql, node);
    }
    sql.push(")");
}

fn push_id(sql: &mut QueryBuilder<Postgres>, test: &Test) {
    match test {
        Test::Eq(Value::String(text)) => sql.push("(id = ").push_bind(to_stored(text).into_owned()).push(")"),
        Test::In(values) => sql.push("(id = ANY(").push_bind(all_stored(values.strings())).push("))"),
        Test::Compare(order, Value::String(text)) => {
            sql.push("(id").push(operator(*order)).push_bind(to_stored(text).into_owned()).push(")")
        }
        Test::Exists(true) => sql.push("TRUE"),
        Test::Eq(_) | Test::Compare(..) | Test::Exists(false) => sql.push("FALSE"),
    };
}

fn push_label(sql: &mut QueryBuilder<Postgres>, test: &Test) {
    match test {
        Test::Eq(Value::String(text)) => sql.push("(labels && ").push_bind(label_forms([text.as_str()])).push(")"),
        Test::In(values) => sql.push("(labels && ").push_bind(label_forms(values.strings().iter().map(String::as_str))).push(")"),
        Test::Compare(order, Value::String(text)) => {
            sql.push("EXISTS (SELECT FROM unnest(labels) AS one (label) WHERE normalize(one.label) COLLATE \"C\"");
            sql.push(operator(*order)).push_bind(to_stored(text).into_owned()).push(")")
        }
        Test::Exists(wanted) => sql.push(if *wanted { "(cardinality(labels) > 0)" } else { "(cardinality(labels) = 0)" }),
        Test::Eq(_) | Test::Compare(..) => sql.push("FALSE"),
    };
}

fn push_metadata(sql: &mut QueryBuilder<Postgres>, path: &str, test: &Test) {
    match test {
        Test::Exists(wanted) => {
            sql.push("(coalesce(jsonb_typeof(");
            push_value(sql, path);
            sql.push("), 'null')").push(if *wanted { " <> 'null')" } else { " = 'null')" });
        }
        Test::Eq(Value::String(text)) => push_among(sql, path, &[to_stored(text).into_owned()], &[]),
        Test::Eq(value) => push_among(sql, path, &[], &[Json(json_to_stored(value))]),
        Test::In(values) => {
            let others: Vec<_> = values.others().map(|value| Json(json_to_stored(&value))).collect();
            push_among(sql, path, &all_stored(values.strings()), &others);
        }
        Test::Compare(order, with) => {
            push_of_value(sql, path, |sql| {
                match with {
                    Value::String(text) => sql
                        .push("CASE jsonb_typeof(the.value) WHEN 'string' THEN normalize(the.value #>> '{}') COLLATE \"C\"")
                        .push(operator(*order))
                        .push_bind(to_stored(text).into_owned()),
                    // Numbers in jsonb are exact decimals, and so is their order.
                    number => sql
                        .push("CASE jsonb_typeof(the.value) WHEN 'number' THEN the.value")
                        .push(operator(*order))
                        .push_bind(Json(number.clone())),
                };
                sql.push(" ELSE FALSE END");
            });
        }
    }
}

/// The value, or an element of it where it is a list, is one of these strings or of the other values. Strings are compared in
/// their composed form, which those that are wanted have.
fn push_among(sql: &mut QueryBuilder<Postgres>, path: &str, strings: &[String], others: &[Json<Value>]) {
    let push_one = |sql: &mut QueryBuilder<Postgres>, value: &str| {
        if strings.is_empty() {
            sql.push(value).push(" = ANY(").push_bind(others.to_vec()).push(")");
            return;
        }
        sql.push(format!("CASE jsonb_typeof({value}) WHEN 'string' THEN normalize({value} #>> '{{}}') = ANY("));
        sql.push_bind(strings.to_vec()).push(") ELSE ");
        sql.push(value).push(" = ANY(").push_bind(others.to_vec()).push(") END");
    };
    push_of_value(sql, path, |sql| {
        push_one(sql, "the.value");
        sql.push(
            " OR EXISTS (SELECT FROM jsonb_array_elements(CASE jsonb_typeof(the.value) WHEN 'array' THEN the.value ELSE '[]' END) \
             AS one (element) WHERE ",
        );
        push_one(sql, "one.element");
        sql.push(")");
    });
}

/// A condition on `the.value`, false where there is none.
fn push_of_value(sql: &mut QueryBuilder<Postgres>, path: &str, condition: impl FnOnce(&mut QueryBuilder<Postgres>)) {
    sql.push("coalesce((SELECT ");
    condition(sql);
    sql.push(" FROM (SELECT ");
    push_value(sql, path);
    sql.push(" AS value) AS the), FALSE)");
}

/// The value that `path` names, NULL where there is none.
fn push_value(sql: &mut QueryBuilder<Postgres>, path: &str) {
    let path = to_stored(path).into_owned();
    if path.contains('.') {
        sql.push("dino_find(metadata, ").push_bind(path).push(")");
    } else {
        sql.push("(metadata -> ").push_bind(path).push(")");
    }
}

fn operator(order: Order) -> &'static str {
    match order {
        Order::Above => " > ",
        Order::AtLeast => " >= ",
        Order::Below => " < ",
        Order::AtMost => " <= ",
    }
}

/// Labels in the form that is stored, and decomposed, which an earlier version may have kept: the index over labels knows
/// whole strings only.
pub(super) fn label_forms<'a>(labels: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let forms = |label: &str| if label.is_ascii() { vec![label.to_owned()] } else { vec![label.to_owned(), nfd(label).into_owned()] };
    labels.into_iter().flat_map(forms).map(|label| to_stored(&label).into_owned()).collect()
}

fn all_stored(strings: &[String]) -> Vec<String> {
    strings.iter().map(|string| to_stored(string).into_owned()).collect()
}
