//! PromQL: it parses, and what it selects exists in a scrape.

use std::convert::Infallible;

use promql_parser::parser::{self, Expr, VectorSelector};
use promql_parser::util::{ExprVisitor, walk_expr};
use serde_json::Value;

use crate::markdown::documents;
use crate::metrics::{Series, full_scrape, series};
use crate::yaml::manifests;

/// What the RDS CSI driver has, as the safety guide's specification lists it: `(name, labels)`.
const DRIVER: &[(&str, &[&str])] = &[
    ("rds_csi_migration_active_migrations", &[]),
    ("rds_csi_migration_migrations_total", &["result"]),
    ("rds_csi_migration_duration_seconds_bucket", &["le"]),
];
/// Values of the driver's `result`.
const DRIVER_RESULTS: &[&str] = &["success", "failed", "timeout"];
/// What node_exporter says of the files that it reads.
const COLLECTOR: &[&str] = &["node_textfile_mtime_seconds", "node_textfile_scrape_error"];
/// Labels that Prometheus adds to what it scrapes.
const TARGET_LABELS: &[&str] = &["instance", "job"];

/// An expression and where it is.
struct Query {
    at: String,
    text: String,
}

/// All PromQL of all documents: its own blocks, one expression after each blank line, and the rules.
fn queries() -> Vec<Query> {
    let mut queries = Vec::new();
    for document in documents() {
        for block in document.blocks(&["promql"]) {
            for text in block.text.split("\n\n") {
                queries.push(Query {
                    at: block.at.clone(),
                    text: text.to_owned(),
                });
            }
        }
    }
    queries.extend(rules());
    queries
}

fn rules() -> Vec<Query> {
    let mut queries = Vec::new();
    for (at, manifest) in manifests() {
        if manifest["kind"] != "PrometheusRule" {
            continue;
        }
        let groups = manifest["spec"]["groups"].as_array().unwrap();
        for rule in groups.iter().flat_map(|g| g["rules"].as_array().unwrap()) {
            for field in ["expr", "alert"] {
                assert!(rule[field].is_string(), "{at}: no {field} in {rule:#}");
            }
            for field in ["summary", "description"] {
                assert!(
                    rule["annotations"][field].is_string(),
                    "{at}: no {field} in {rule:#}"
                );
            }
            queries.push(Query {
                at: format!("{at}, {}", rule["alert"]),
                text: rule["expr"].as_str().unwrap().to_owned(),
            });
        }
    }
    queries
}

#[derive(Default)]
struct Found {
    selectors: Vec<VectorSelector>,
    grouped_by: Vec<String>,
}

impl ExprVisitor for Found {
    type Error = Infallible;

    fn pre_visit(&mut self, expr: &Expr) -> Result<bool, Infallible> {
        match expr {
            Expr::VectorSelector(selector) => self.selectors.push(selector.clone()),
            Expr::MatrixSelector(matrix) => self.selectors.push(matrix.vs.clone()),
            Expr::Aggregate(aggregate) => {
                if let Some(modifier) = &aggregate.modifier {
                    self.grouped_by.extend(modifier.labels().labels.clone());
                }
            }
            _ => {}
        }
        Ok(true)
    }
}

fn found(query: &Query) -> Found {
    let expr = parser::parse(&query.text)
        .unwrap_or_else(|error| panic!("{}: {error}\n{}", query.at, query.text));
    let mut found = Found::default();
    walk_expr(&mut found, &expr).unwrap_or_else(|never| match never {});
    found
}

/// Why a selector selects nothing, if it does.
fn selects_nothing(selector: &VectorSelector, scrape: &[Series]) -> Option<String> {
    let Some(name) = &selector.name else {
        return Some("it has no name".to_owned());
    };
    if !selector.matchers.or_matchers.is_empty() {
        return Some("`or` between matchers is not PromQL everywhere".to_owned());
    }
    // What Prometheus adds is not in a scrape.
    let matchers: Vec<_> = selector
        .matchers
        .matchers
        .iter()
        .filter(|m| !TARGET_LABELS.contains(&m.name.as_str()))
        .collect();
    if COLLECTOR.contains(&name.as_str()) {
        return None;
    }
    if let Some((_, labels)) = DRIVER.iter().find(|(known, _)| known == name) {
        return matchers.iter().find_map(|m| {
            let value_exists = m.name != "result" || DRIVER_RESULTS.iter().any(|r| m.is_match(r));
            (!labels.contains(&m.name.as_str()) || !value_exists)
                .then(|| format!("the driver has no {name}{{{}}}", m.name))
        });
    }
    let fits = |series: &&Series| {
        series.name == *name
            && matchers.iter().all(|m| {
                let value = series.labels.get(&m.name);
                value.is_some_and(|value| m.is_match(value))
            })
    };
    match scrape.iter().find(fits) {
        Some(_) => None,
        None => Some(format!("no such series: {selector}")),
    }
}

#[test]
fn every_expression_selects_series_that_exist() {
    let scrape = series(&full_scrape());
    let mut wrong = Vec::new();
    let mut checked = 0;
    for query in queries() {
        let found = found(&query);
        assert!(!found.selectors.is_empty(), "{}: selects nothing", query.at);
        for selector in &found.selectors {
            checked += 1;
            if let Some(why) = selects_nothing(selector, &scrape) {
                wrong.push(format!("{}: {why}", query.at));
            }
        }
        for label in &found.grouped_by {
            let exists = TARGET_LABELS.contains(&label.as_str())
                || scrape
                    .iter()
                    .any(|series| series.labels.contains_key(label));
            if !exists {
                wrong.push(format!("{}: no series has the label {label}", query.at));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(checked >= 20, "only {checked} selectors found");
}

#[test]
fn a_selector_that_selects_nothing_is_noticed() {
    let scrape = series(&full_scrape());
    for text in [
        "katamaran_migration_no_such_metric",
        "katamaran_migration_migrations_total{result=\"sucess\"}",
        "katamaran_migration_migrations_total{side=\"source\"}",
        "rate(katamaran_migration_duration_seconds[5m])",
        "rds_csi_migration_aborts_total",
        "rds_csi_migration_migrations_total{result=\"undecided\"}",
        "kubevirt_vmi_migrations_in_running_phase",
    ] {
        let query = Query {
            at: String::new(),
            text: text.to_owned(),
        };
        let found = found(&query);
        assert!(
            found
                .selectors
                .iter()
                .any(|selector| selects_nothing(selector, &scrape).is_some()),
            "{text} was taken"
        );
    }
}

#[test]
fn the_questions_that_operators_ask_are_answered_for_both() {
    let all: Vec<String> = queries().into_iter().map(|query| query.text).collect();
    for prefix in ["rds_csi", "katamaran"] {
        for words in [
            &["_migration_active_migrations"][..],
            &["_migration_migrations_total", "success"],
            &["_migration_migrations_total", "timeout"],
            &[
                "histogram_quantile(0.95",
                "_migration_duration_seconds_bucket",
            ],
        ] {
            let answered = all.iter().any(|query| {
                words
                    .iter()
                    .all(|word| query.contains(word) && query.contains(prefix))
            });
            assert!(answered, "no PromQL with {prefix} and {words:?}");
        }
    }
}

/// So that a new field of a rule is seen.
#[test]
fn rules_have_only_fields_that_prometheus_knows() {
    for (at, manifest) in manifests() {
        if manifest["kind"] != "PrometheusRule" {
            continue;
        }
        let rules = manifest["spec"]["groups"].as_array().unwrap();
        for rule in rules.iter().flat_map(|g| g["rules"].as_array().unwrap()) {
            let Value::Object(fields) = rule else {
                panic!("{at}: {rule:#}")
            };
            for field in fields.keys() {
                assert!(
                    ["alert", "expr", "for", "labels", "annotations"].contains(&field.as_str()),
                    "{at}: {field}"
                );
            }
        }
    }
}
