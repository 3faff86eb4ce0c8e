//! The documents, taken apart.

use std::path::{Path, PathBuf};

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

/// One Markdown file.
#[derive(Debug)]
pub(crate) struct Document {
    /// Relative to the repository.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) text: String,
}

/// A fenced block of code.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) language: String,
    pub(crate) text: String,
    /// Document and line, for messages.
    pub(crate) at: String,
}

/// The repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// All documents: at the top and in `docs`.
pub(crate) fn documents() -> Vec<Document> {
    let mut documents = Vec::new();
    for directory in [root().to_owned(), root().join("docs")] {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "md") {
                documents.push(Document {
                    name: path.strip_prefix(root()).unwrap().display().to_string(),
                    text: std::fs::read_to_string(&path).unwrap(),
                    path,
                });
            }
        }
    }
    documents.sort_by(|a, b| a.name.cmp(&b.name));
    documents
}

/// One document.
pub(crate) fn document(name: &str) -> Document {
    let found = documents().into_iter().find(|d| d.name == name);
    found.unwrap_or_else(|| panic!("there is no {name}"))
}

impl Document {
    pub(crate) fn events(&self) -> impl Iterator<Item = (Event<'_>, std::ops::Range<usize>)> {
        Parser::new_ext(&self.text, Options::ENABLE_TABLES).into_offset_iter()
    }

    /// Where something is, for messages.
    pub(crate) fn at(&self, offset: usize) -> String {
        format!(
            "{}:{}",
            self.name,
            self.text[..offset].matches('\n').count() + 1
        )
    }

    /// All fenced blocks of these languages.
    pub(crate) fn blocks(&self, languages: &[&str]) -> Vec<Block> {
        let mut blocks = Vec::new();
        let mut open: Option<Block> = None;
        for (event, range) in self.events() {
            match event {
                Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(language))) => {
                    open = Some(Block {
                        language: language.to_string(),
                        text: String::new(),
                        at: self.at(range.start),
                    });
                }
                Event::Text(text) => {
                    if let Some(block) = &mut open {
                        block.text.push_str(&text);
                    }
                }
                Event::End(TagEnd::CodeBlock) => blocks.extend(open.take()),
                _ => {}
            }
        }
        blocks.retain(|block| languages.contains(&block.language.as_str()));
        blocks
    }

    /// The anchors of its headings, as GitHub makes them.
    pub(crate) fn anchors(&self) -> Vec<String> {
        let mut anchors = Vec::new();
        let mut heading: Option<String> = None;
        for (event, _) in self.events() {
            match event {
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::Text(text) | Event::Code(text) => {
                    if let Some(heading) = &mut heading {
                        heading.push_str(&text);
                    }
                }
                Event::End(TagEnd::Heading(_)) => {
                    anchors.extend(heading.take().as_deref().map(anchor));
                }
                _ => {}
            }
        }
        anchors
    }

    /// The rows of its tables, without their heads; cells as plain text.
    pub(crate) fn rows(&self) -> Vec<Vec<String>> {
        let mut rows: Vec<Vec<String>> = Vec::new();
        let mut in_row = false;
        for (event, _) in self.events() {
            match event {
                Event::Start(Tag::TableRow) => {
                    in_row = true;
                    rows.push(Vec::new());
                }
                Event::End(TagEnd::TableRow) => in_row = false,
                Event::Start(Tag::TableCell) if in_row => {
                    rows.last_mut().unwrap().push(String::new());
                }
                Event::Text(text) | Event::Code(text) if in_row => {
                    rows.last_mut().unwrap().last_mut().unwrap().push_str(&text);
                }
                _ => {}
            }
        }
        rows
    }
}

fn anchor(heading: &str) -> String {
    heading
        .to_lowercase()
        .chars()
        .filter_map(|c| match c {
            ' ' => Some('-'),
            c if c.is_alphanumeric() || matches!(c, '-' | '_') => Some(c),
            _ => None,
        })
        .collect()
}
