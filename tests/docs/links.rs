//! Links.

use pulldown_cmark::{Event, Tag};

use crate::markdown::{Document, document, documents};

fn broken(from: &Document, link: &str) -> Option<String> {
    let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
    let path = if file.is_empty() {
        from.path.clone()
    } else {
        from.path.parent().unwrap().join(file)
    };
    if !path.exists() {
        return Some(format!("there is no {}", path.display()));
    }
    if anchor.is_empty() {
        return None;
    }
    let target = documents()
        .into_iter()
        .find(|d| d.path.canonicalize().unwrap() == path.canonicalize().unwrap());
    match target {
        Some(target) if target.anchors().iter().any(|a| a == anchor) => None,
        Some(target) => Some(format!("{} has no heading for #{anchor}", target.name)),
        None => Some(format!("{} is no document of ours", path.display())),
    }
}

#[test]
fn every_link_leads_somewhere() {
    let mut wrong = Vec::new();
    for document in documents() {
        for (event, range) in document.events() {
            let Event::Start(Tag::Link { dest_url, .. }) = event else {
                continue;
            };
            if dest_url.contains("://") {
                continue;
            }
            if let Some(why) = broken(&document, &dest_url) {
                wrong.push(format!("{}: {why}", document.at(range.start)));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_index_names_every_document_and_the_readme_names_the_index() {
    let index = document("docs/README.md");
    for other in documents() {
        let name = other.name.strip_prefix("docs/");
        if let Some(name) = name.filter(|name| *name != "README.md") {
            assert!(
                index.text.contains(&format!("({name})")),
                "docs/README.md does not name {name}"
            );
        }
    }
    assert!(document("README.md").text.contains("(docs/README.md)"));
}
