//! Compares the table with the sources of the router and of the readers.
//! `the_document_is_what_is_served` tests with a server that each operation has a handler.

use std::collections::BTreeSet;

use super::*;

/// A path with uniform parameters, without the verb after one.
fn alike(path: &str) -> String {
    let pieces = path.split('{').map(|piece| match piece.split_once('}') {
        Some((_, rest)) if rest.starts_with(':') => "{}".to_owned(),
        Some((_, rest)) => format!("{{}}{rest}"),
        None => piece.to_owned(),
    });
    pieces.collect()
}

#[test]
fn every_route_is_in_the_document_and_nothing_else() {
    let sources = [
        include_str!("../routes.rs"),
        include_str!("../control.rs"),
        include_str!("../openapi.rs"),
    ];
    let routes = sources
        .iter()
        .flat_map(|source| source.split(".route(").skip(1));
    let routes: BTreeSet<_> = routes
        .map(|route| alike(route.split('"').nth(1).unwrap()))
        .collect();
    let operations = operations();
    // The doors of the systems are compared with their adapters.
    let native = operations
        .iter()
        .filter(|it| it.group != "Drop-in endpoints");
    let documented: BTreeSet<_> = native.map(|it| alike(it.path)).collect();
    assert_eq!(documented, routes);
}

#[test]
fn operations_have_names_of_their_own_and_the_parameters_of_their_paths() {
    let operations = operations();
    let names: BTreeSet<_> = operations.iter().map(|it| it.id).collect();
    assert_eq!(names.len(), operations.len());
    for operation in &operations {
        let in_path = operation.path.split('{').skip(1);
        let in_path: Vec<_> = in_path
            .map(|piece| piece.split('}').next().unwrap())
            .collect();
        let told = operation.parameters.iter().filter(|it| it.place == "path");
        let told: Vec<_> = told.map(|it| it.name).collect();
        assert_eq!(told, in_path, "{}", operation.path);
        assert!(!operation.summary.is_empty() && !operation.group.is_empty());
        assert!(!operation.answers.is_empty(), "{}", operation.path);
    }
}

/// An operation with a body that nobody can copy is a riddle.
#[test]
fn every_operation_has_an_example() {
    let document = openapi();
    for operation in operations() {
        let written = &document["paths"][operation.path][operation.method];
        let curl = written["x-codeSamples"][0]["source"].as_str().unwrap();
        assert!(curl.starts_with("curl "), "{curl}");
        assert_eq!(
            operation.bodies.is_empty(),
            operation.body_example.is_none(),
            "{}",
            operation.path
        );
        for (status, answer) in written["responses"].as_object().unwrap() {
            if let Some(content) = answer["content"].get("application/json") {
                assert!(!content["example"].is_null(), "{} {status}", operation.path);
            }
        }
    }
}

#[test]
fn every_reference_leads_somewhere() {
    fn check(document: &Value, value: &Value) {
        match value {
            Value::Object(members) => {
                if let Some(Value::String(reference)) = members.get("$ref") {
                    let found = reference
                        .strip_prefix('#')
                        .and_then(|it| document.pointer(it));
                    assert!(found.is_some(), "{reference}");
                }
                members.values().for_each(|value| check(document, value));
            }
            Value::Array(items) => items.iter().for_each(|value| check(document, value)),
            _ => {}
        }
    }
    let document = openapi();
    check(&document, &document);
}

/// Commands are read field by field, so their schemas are written separately from the reader.
#[test]
fn the_fields_of_commands_are_those_that_are_read() {
    let document = openapi();
    let reader = include_str!("../control.rs");
    for name in ["DirectiveRequest", "RateRequest", "LimitRequest"] {
        let fields = &document["components"]["schemas"][name]["properties"];
        for field in fields.as_object().unwrap().keys() {
            assert!(
                reader.contains(&format!("(\"{field}\", ")),
                "{name}.{field}"
            );
        }
    }
}
