//! The description that a daemon serves, as a judge of its answers.

use std::collections::BTreeSet;

use jsonschema::Validator;
use serde_json::{Value, json};

use crate::world::{Answer, World};

pub struct Description {
    pub document: Value,
    /// What was seen: the operation and the status of its answer.
    pub seen: BTreeSet<(String, u16)>,
}

impl Description {
    pub fn of(world: &World) -> Self {
        let answer = world.ask("GET", "/v1/openapi.json", "").assert(200);
        Self {
            document: answer.json(),
            seen: BTreeSet::new(),
        }
    }

    /// Paths with braces, and their methods in capital letters.
    pub fn paths(&self) -> Vec<(String, Vec<String>)> {
        let paths = self.document["paths"].as_object().unwrap();
        let methods = |item: &Value| -> Vec<String> {
            let keys = item.as_object().unwrap().keys();
            keys.map(|key| key.to_uppercase()).collect()
        };
        paths
            .iter()
            .map(|(path, item)| (path.clone(), methods(item)))
            .collect()
    }

    /// The path in the description that a request's path fits.
    fn template(&self, path: &str) -> Option<String> {
        let path = path.split('?').next().unwrap();
        let parts = |text: &str| text.split('/').map(str::to_owned).collect::<Vec<_>>();
        let asked = parts(path);
        let fits = |template: &str| {
            let template = parts(template);
            template.len() == asked.len()
                && template
                    .iter()
                    .zip(&asked)
                    .all(|(one, other)| one.starts_with('{') || one == other)
        };
        let mut paths = self.paths().into_iter().map(|(path, _)| path);
        paths.find(|template| fits(template))
    }

    /// Asks, and checks the answer against the description.
    #[track_caller]
    pub fn ask(&mut self, world: &World, method: &str, path: &str, body: &str) -> Answer {
        let answer = world.ask(method, path, body);
        self.check(method, path, &answer);
        answer
    }

    #[track_caller]
    pub fn check(&mut self, method: &str, path: &str, answer: &Answer) {
        let operation = self.template(path).map(|template| {
            let item = &self.document["paths"][&template];
            item[method.to_lowercase()].clone()
        });
        let what = || format!("{method} {path}: {answer:?}");
        let operation = operation.unwrap_or(Value::Null);
        if operation.is_null() {
            // There is no such path or method, and that is what the answer says.
            assert!([404, 405].contains(&answer.status), "{}", what());
            self.matches(&json!({"$ref": "#/components/schemas/Problem"}), answer);
            return;
        }
        let responses = &operation["responses"];
        let response = &responses[answer.status.to_string()];
        assert!(
            !response.is_null(),
            "the status is not described: {}",
            what()
        );
        match response["content"].as_object() {
            None => assert_eq!(answer.body, "", "{}", what()),
            Some(content) => {
                let kind = answer.header("content-type").unwrap();
                let described = content.get(kind);
                let described = described.unwrap_or_else(|| panic!("{kind}: {}", what()));
                if kind.contains("json") {
                    self.matches(&described["schema"], answer);
                }
            }
        }
        if answer.status >= 400 {
            let problem = answer.json();
            assert_eq!(problem["status"], answer.status, "{}", what());
            assert_eq!(problem["detail"], problem["message"], "{}", what());
        }
        let id = operation["operationId"].as_str().unwrap();
        self.seen.insert((id.to_owned(), answer.status));
    }

    #[track_caller]
    fn matches(&self, schema: &Value, answer: &Answer) {
        let value = answer.json();
        let errors = errors(&self.validator(schema), &value);
        assert!(errors.is_empty(), "{errors:?}\n{value:#}");
    }

    /// For values that have no field without a description.
    pub fn validator(&self, schema: &Value) -> Validator {
        let mut whole = json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "components": self.document["components"],
            "allOf": [schema],
        });
        if schema.get("$ref").is_some() {
            whole["unevaluatedProperties"] = json!(false);
        }
        jsonschema::validator_for(&whole).unwrap()
    }
}

pub fn errors(validator: &Validator, value: &Value) -> Vec<String> {
    let errors = validator.iter_errors(value);
    errors
        .map(|e| format!("{} at {}", e, e.instance_path()))
        .collect()
}
