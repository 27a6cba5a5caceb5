//! From the parser's events to a tree: limits, anchors, merge keys, duplicate keys.

use std::collections::{HashMap, HashSet};

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, Tag};

use super::source::{Cursor, check};
use super::{Error, Key, Kind, Node, Place, Style, scalar};

/// The largest document that is read, in bytes.
pub const MAX_INPUT_BYTES: usize = 16 << 20;
/// How deep collections may be nested.
pub const MAX_DEPTH: usize = 200;
/// How many values a document may have after its aliases are expanded.
pub const MAX_NODES: usize = 420_000;
/// How many bytes a document may take after its aliases are expanded: its text, its keys, its expressions.
pub const MAX_EXPANDED_BYTES: usize = 48 << 20;
/// How many commas a document may have: the scanner holds a whole `[…]` or `{…}` in memory.
const MAX_COMMAS: usize = 300_000;
/// Up to how many bytes of a folded string it is noted where its lines are: conditions are shorter.
const MAX_FOLDED: usize = 84_000;
/// What a key takes besides its text.
const KEY_BYTES: usize = 40;
/// What an expression takes once it is read.
const EXPRESSION_BYTES: usize = 1000;

/// Reads one document. A byte order mark is skipped; nothing at all is null.
///
/// # Errors
/// The first thing that keeps the text from being one YAML document within the limits, with its place.
pub fn parse(text: impl AsRef<[u8]>) -> Result<Node, Error> {
    let (node, complaints) = parse_all(text)?;
    complaints.into_iter().next().map_or(Ok(node), Err)
}

/// As [`parse`], but what is wrong and leaves the rest of the document readable (a key that comes twice, a value
/// that its tag does not fit) comes with the document; of keys that come twice, the first counts.
///
/// # Errors
/// The first thing that keeps the text from being read at all, with its place.
pub fn parse_all(text: impl AsRef<[u8]>) -> Result<(Node, Vec<Error>), Error> {
    let text = check(text.as_ref(), MAX_INPUT_BYTES)?;
    if text.bytes().filter(|byte| *byte == b',').nth(MAX_COMMAS).is_some() {
        let message = format!("the document has more than {MAX_COMMAS} commas; it is too large to be read");
        return Err(Error::new(Place::START, message));
    }
    let mut parser = Parser::new_from_str(text);
    let mut reader = Reader {
        cursor: Cursor::new(text),
        open: Vec::new(),
        root: None,
        anchors: HashMap::new(),
        size: Size::default(),
        complaints: Vec::new(),
    };
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| explain(&error, text))?;
        match event {
            Event::DocumentStart(_) if reader.root.is_some() => {
                return Err(Error::new(place(span), "a second document begins here; only one is read"));
            }
            Event::StreamEnd => break,
            event => reader.event(event, span)?,
        }
    }
    let nothing =
        Node { place: Place::START, style: Style::Plain, expressions: None, folds: None, kind: Kind::Null };
    Ok((reader.root.unwrap_or(nothing), reader.complaints))
}

fn place(span: Span) -> Place {
    Place::new(span.start.line(), span.start.col() + 1)
}

/// The parser's complaint in words that name a tab where one is to blame.
fn explain(error: &ScanError, text: &str) -> Error {
    let at = Place::new(error.marker().line().max(1), error.marker().col() + 1);
    let lines = text.lines().enumerate().skip(at.line.saturating_sub(2)).take(3);
    for (number, line) in lines {
        let indentation = &line[..line.len() - line.trim_start_matches([' ', '\t']).len()];
        if let Some(tab) = indentation.find('\t') {
            return Error::new(
                Place::new(number + 1, tab + 1),
                "a tab is used as indentation; YAML allows spaces only",
            );
        }
    }
    if error.info().contains("unknown anchor") {
        let line = text.lines().nth(at.line - 1).unwrap_or_default();
        let rest: String = line.chars().skip(at.column - 1).skip_while(|c| *c != '*').skip(1).collect();
        let name = rest.split(|c: char| c.is_whitespace() || ",[]{}".contains(c)).next().unwrap_or_default();
        return Error::new(at, format!("there is no anchor '{}' for this alias", shorten(name)));
    }
    if error.info().contains("recursion limit") {
        return Error::new(at, format!("collections are nested deeper than {MAX_DEPTH}"));
    }
    Error::new(at, error.info())
}

/// What a subtree costs.
#[derive(Debug, Clone, Copy, Default)]
struct Size {
    nodes: usize,
    bytes: usize,
}

/// A value that an anchor names.
struct Anchored {
    node: Node,
    size: Size,
    depth: usize,
}

/// A collection that has begun.
struct Open {
    place: Place,
    anchor: usize,
    /// The size of everything before it.
    before: Size,
    /// How deep its contents go below it.
    inner_depth: usize,
    content: Content,
}

enum Content {
    Sequence(Vec<Node>),
    Mapping {
        entries: Vec<(Key, Node)>,
        key: Option<Key>,
        /// The key is here a second time: its value is let go.
        again: bool,
        names: HashSet<String>,
        merges: Vec<(usize, Node)>,
    },
}

struct Reader<'a> {
    cursor: Cursor<'a>,
    open: Vec<Open>,
    root: Option<Node>,
    anchors: HashMap<usize, Anchored>,
    size: Size,
    /// What is wrong and does not end the reading.
    complaints: Vec<Error>,
}

/// How many complaints are kept.
const MAX_COMPLAINTS: usize = 1000;
/// For how many keys that come twice the first one is looked for.
const SEARCHED: usize = 100;

impl Reader<'_> {
    fn complain(&mut self, place: Place, message: String) {
        if self.complaints.len() < MAX_COMPLAINTS {
            self.complaints.push(Error::new(place, message));
        }
    }

    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), Error> {
        let place = place(span);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let before = self.size;
                if self.wants_key() {
                    self.grow(Size { nodes: 0, bytes: text.len() + KEY_BYTES }, place)?;
                    self.key(&text, style, place)?;
                    if anchor != 0 {
                        let node = self.scalar(&text, style, tag.as_deref(), span);
                        self.anchor(anchor, node, before, 0);
                    }
                    return Ok(());
                }
                let expressions = text.matches("${{").count();
                self.grow(Size { nodes: 1, bytes: text.len() + expressions * EXPRESSION_BYTES }, place)?;
                let node = self.scalar(&text, style, tag.as_deref(), span);
                self.complete(node, anchor, before, 0)
            }
            Event::SequenceStart(anchor, _) => self.begin(place, anchor, Content::Sequence(Vec::new())),
            Event::MappingStart(anchor, _) => self.begin(
                place,
                anchor,
                Content::Mapping {
                    entries: Vec::new(),
                    key: None,
                    again: false,
                    names: HashSet::new(),
                    merges: Vec::new(),
                },
            ),
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(anchor) => self.alias(anchor, place),
            _ => Ok(()),
        }
    }

    fn grow(&mut self, by: Size, place: Place) -> Result<(), Error> {
        self.size.nodes += by.nodes;
        self.size.bytes += by.bytes;
        if self.size.nodes > MAX_NODES {
            return Err(Error::new(place, format!("the document has more than {MAX_NODES} values")));
        }
        if self.size.bytes > MAX_EXPANDED_BYTES {
            let mebibytes = MAX_EXPANDED_BYTES >> 20;
            return Err(Error::new(
                place,
                format!("the document takes more than {mebibytes} MiB with its aliases and expressions"),
            ));
        }
        Ok(())
    }

    fn wants_key(&self) -> bool {
        matches!(self.open.last(), Some(Open { content: Content::Mapping { key: None, .. }, .. }))
    }

    fn key(&mut self, text: &str, style: ScalarStyle, place: Place) -> Result<(), Error> {
        let Some(Open { content: Content::Mapping { entries, key, names, again, .. }, .. }) =
            self.open.last_mut()
        else {
            return Ok(());
        };
        let merges = text == "<<" && style == ScalarStyle::Plain;
        *key = Some(Key { place, text: text.to_owned() });
        if !merges && !names.insert(text.to_owned()) {
            *again = true;
            let message = match self.complaints.len() {
                0..SEARCHED => {
                    let first = entries.iter().find(|(key, _)| key.text == text);
                    let line = first.map_or(place, |(key, _)| key.place).line;
                    format!("the key '{}' is here a second time (first in line {line})", shorten(text))
                }
                _ => format!("the key '{}' is here a second time", shorten(text)),
            };
            self.complain(place, message);
        }
        Ok(())
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, tag: Option<&Tag>, span: Span) -> Node {
        let block = matches!(style, ScalarStyle::Literal | ScalarStyle::Folded);
        let (header, indent) = if block { self.cursor.block(span.start.index()) } else { (None, 0) };
        let folded = matches!(style, ScalarStyle::Plain | ScalarStyle::Folded) && text.len() < MAX_FOLDED;
        let folds = (folded && span.end.line() > span.start.line() && !text.contains("${{"))
            .then(|| Box::new(self.cursor.folds(span.start.index(), text)));
        let expressions =
            text.contains("${{").then(|| self.cursor.places("${{", span.start.index(), span.end.index()));
        let tagged = tag.filter(|tag| tag.is_yaml_core_schema()).map(|tag| tag.suffix.as_str());
        let kind = match (style, tagged) {
            (_, Some("str")) => Kind::String(text.to_owned()),
            (ScalarStyle::Plain, _) | (_, Some("int" | "float" | "bool" | "null")) => scalar::resolve(text),
            _ => Kind::String(text.to_owned()),
        };
        let fits = match tagged {
            Some("int") => matches!(&kind, Kind::Number { text, .. } if !text.contains(['.', 'e', 'E'])),
            Some("float") => matches!(kind, Kind::Number { .. }),
            Some("bool") => matches!(kind, Kind::Bool(_)),
            Some("null") => matches!(kind, Kind::Null),
            _ => true,
        };
        if let (false, Some(tag)) = (fits, tagged) {
            self.complain(place(span), format!("'{}' is not of the type '!!{tag}'", shorten(text)));
        }
        let style = match style {
            ScalarStyle::Plain => Style::Plain,
            ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => Style::Quoted,
            ScalarStyle::Literal | ScalarStyle::Folded => Style::Block { indent },
        };
        Node { place: header.unwrap_or_else(|| place(span)), style, expressions, folds, kind }
    }

    fn begin(&mut self, place: Place, anchor: usize, content: Content) -> Result<(), Error> {
        if self.wants_key() {
            return Err(Error::new(place, "a key must be text, not a collection"));
        }
        if self.open.len() >= MAX_DEPTH {
            return Err(Error::new(place, format!("collections are nested deeper than {MAX_DEPTH}")));
        }
        let before = self.size;
        self.grow(Size { nodes: 1, bytes: 0 }, place)?;
        self.open.push(Open { place, anchor, before, inner_depth: 0, content });
        Ok(())
    }

    fn end(&mut self) -> Result<(), Error> {
        let Some(Open { place, anchor, before, inner_depth, content }) = self.open.pop() else {
            return Ok(());
        };
        let kind = match content {
            Content::Sequence(mut items) => {
                items.shrink_to_fit();
                Kind::Sequence(items)
            }
            Content::Mapping { entries, names, merges, .. } => {
                let mut entries = merge(entries, names, merges)?;
                entries.shrink_to_fit();
                Kind::Mapping(entries)
            }
        };
        let node = Node { place, style: Style::Plain, expressions: None, folds: None, kind };
        self.complete(node, anchor, before, inner_depth + 1)
    }

    fn alias(&mut self, anchor: usize, place: Place) -> Result<(), Error> {
        let Some(Anchored { node, size, depth }) = self.anchors.get(&anchor) else {
            return Err(Error::new(place, "an alias stands inside the value that it stands for"));
        };
        let (size, depth) = (*size, *depth);
        if self.wants_key() {
            let Some(text) = node.scalar_text() else {
                return Err(Error::new(place, "a key must be text, not a collection"));
            };
            self.grow(size, place)?;
            return self.key(&text, ScalarStyle::Plain, place);
        }
        if self.open.len() + depth > MAX_DEPTH {
            return Err(Error::new(place, format!("collections are nested deeper than {MAX_DEPTH}")));
        }
        let before = self.size;
        // Counted before it is copied: this is where a small document would become a large one.
        self.size.nodes += size.nodes;
        self.size.bytes += size.bytes;
        if self.size.nodes > MAX_NODES || self.size.bytes > MAX_EXPANDED_BYTES {
            return Err(Error::new(place, "aliases make the document too large (an alias bomb?)"));
        }
        let Some(node) = self.anchors.get(&anchor).map(|anchored| anchored.node.clone()) else {
            return Ok(());
        };
        self.complete(node, 0, before, depth)
    }

    fn anchor(&mut self, anchor: usize, node: Node, before: Size, depth: usize) {
        let size = Size { nodes: self.size.nodes - before.nodes, bytes: self.size.bytes - before.bytes };
        self.anchors.insert(anchor, Anchored { node, size, depth });
    }

    /// Puts a finished value where it belongs.
    fn complete(&mut self, node: Node, anchor: usize, before: Size, depth: usize) -> Result<(), Error> {
        if anchor != 0 {
            let place = node.place;
            self.anchor(anchor, node.clone(), before, depth);
            // The copy that aliases are made from takes memory as well.
            let size = self.anchors.get(&anchor).map_or(Size::default(), |anchored| anchored.size);
            self.grow(size, place)?;
        }
        let Some(parent) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        parent.inner_depth = parent.inner_depth.max(depth);
        match &mut parent.content {
            Content::Sequence(items) => items.push(node),
            Content::Mapping { entries, key, again, names, merges } => {
                if let Some(key) = key.take() {
                    if std::mem::take(again) {
                        return Ok(());
                    }
                    if key.text == "<<" && !names.contains("<<") {
                        merges.push((entries.len(), node));
                    } else {
                        entries.push((key, node));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Puts the entries of merged mappings where their `<<` stood; keys that are there already win.
fn merge(
    entries: Vec<(Key, Node)>,
    mut names: HashSet<String>,
    merges: Vec<(usize, Node)>,
) -> Result<Vec<(Key, Node)>, Error> {
    if merges.is_empty() {
        return Ok(entries);
    }
    let mut merged = Vec::with_capacity(entries.len());
    let mut entries = entries.into_iter();
    let mut taken = 0;
    for (at, node) in merges {
        merged.extend(entries.by_ref().take(at - taken));
        taken = at;
        let sources = match node.kind {
            Kind::Sequence(items) => items,
            Kind::Null => Vec::new(),
            _ => vec![node],
        };
        for source in sources {
            let Kind::Mapping(additions) = source.kind else {
                return Err(Error::new(source.place, "'<<' merges mappings only"));
            };
            merged.extend(additions.into_iter().filter(|(key, _)| names.insert(key.text.clone())));
        }
    }
    merged.extend(entries);
    Ok(merged)
}

/// A key for a message: at most 60 characters.
fn shorten(text: &str) -> String {
    if text.chars().count() <= 60 {
        return text.to_owned();
    }
    text.chars().take(59).chain(['…']).collect()
}
