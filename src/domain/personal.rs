//! Renders personal messages: texts with placeholders, filled in for each recipient.
//!
//! The texts of a job are compiled once per slice. For each recipient they are rendered with its
//! own values, which override those of the message. A missing value fails this recipient and is
//! named, unless the text has a default. `null` counts as missing, as in all our documents.
//!
//! A template comes from a producer, so it can only read those values: no includes, no imports, no
//! macros. Fuel limits the steps and the output of a rendering, so work and memory are bounded for
//! any template. The nesting depth is measured before compilation (`measure`). The same template
//! and values give the same bytes, so a repeated call sends the same message.

mod measure;
mod names;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior, Value};
use serde_json::value::RawValue;

use self::measure::Depth;
use super::fields::{Problem, Problems, shorten};
use super::message::{Content, DATA_BYTES_MAX, LINE_BYTES_MAX, Options, TEXT_BYTES_MAX};
use super::slice::Head;
use crate::json::joined;

/// The fuel for all texts of one recipient. A unit pays for one step or for 64 bytes of output on
/// the way, so all of it pays for little more than a megabyte. A loop over a hundred items takes
/// about a thousand.
const FUEL: u64 = 20_000;

/// The most texts with placeholders in one message.
const TEXTS_MAX: usize = 100;

/// A personal job, ready to be rendered.
pub struct Personal {
    head: Arc<Head>,
    form: Form,
}

impl Personal {
    /// Compiles the texts of a job. `None` for a job without values or without placeholders: all
    /// recipients get the same message.
    pub fn of(head: &Arc<Head>) -> Result<Option<Self>, Vec<Problem>> {
        let Some(vars) = &head.vars else {
            return Ok(None);
        };
        let form = Form::of(&head.content, &head.options, vars)?;
        Ok(form.map(|form| Self {
            head: Arc::clone(head),
            form,
        }))
    }

    /// The job as one recipient gets it, or why it cannot be rendered.
    pub fn render(&self, vars: Option<&RawValue>) -> Result<Arc<Head>, Problem> {
        let mut head = Head {
            vars: None,
            ..(*self.head).clone()
        };
        for (place, rendered) in self.form.fill(vars).map_err(|unfilled| unfilled.problem)? {
            place.put(&mut head, rendered);
        }
        Ok(Arc::new(head))
    }
}

/// The texts of a message, with the values that all recipients share.
pub(super) struct Form {
    texts: Texts,
    defaults: Values,
}

type Values = BTreeMap<String, Value>;

/// Why the message of a recipient cannot be rendered.
#[derive(Debug)]
pub(super) struct Unfilled {
    pub(super) problem: Problem,
    /// The missing value, if one is the cause.
    pub(super) lacks: Option<String>,
}

impl From<Problem> for Unfilled {
    fn from(problem: Problem) -> Self {
        Self {
            problem,
            lacks: None,
        }
    }
}

impl Form {
    /// `None` if there are no placeholders.
    pub(super) fn of(
        content: &Content,
        options: &Options,
        vars: &RawValue,
    ) -> Result<Option<Self>, Vec<Problem>> {
        let texts = Texts::of(content, options)?;
        if texts.texts.is_empty() {
            return Ok(None);
        }
        let defaults = read_values(vars, "message.vars").map_err(|problem| vec![problem])?;
        Ok(Some(Self { texts, defaults }))
    }

    /// The texts as one recipient gets them.
    fn fill(&self, vars: Option<&RawValue>) -> Result<Vec<(Place, String)>, Unfilled> {
        let mut values = self.defaults.clone();
        if let Some(vars) = vars {
            values.extend(read_values(vars, "vars")?);
        }
        let values = Value::from(values);
        let texts = self.texts.texts.iter();
        texts
            .map(|text| Ok((text.place, self.texts.render(text, &values)?)))
            .collect()
    }

    /// Whether the message of one recipient can be rendered.
    pub(super) fn try_out(&self, vars: Option<&RawValue>) -> Result<(), Unfilled> {
        self.fill(vars).map(drop)
    }

    /// Whether a text reads an outside value of this name.
    pub(super) fn reads(&self, name: &str) -> bool {
        let engine = &self.texts.engine;
        let reads = || {
            let mut templates = engine.templates();
            templates.any(|(_, template)| template.undeclared_variables(false).contains(name))
        };
        guarded(Depth::Flat, reads).unwrap_or(false)
    }
}

/// The problems with the placeholders of a message.
pub fn problems(content: &Content, options: &Options) -> Vec<Problem> {
    Texts::of(content, options).err().unwrap_or_default()
}

fn read_values(vars: &RawValue, field: &str) -> Result<Values, Problem> {
    let mut values: Values = serde_json::from_str(vars.get())
        .map_err(|error| Problem::new(field, format!("a JSON object is expected: {error}")))?;
    values.retain(|_, value| !value.is_none());
    Ok(values)
}

// ---------------------------------------------------------------------------------------------
// Places of texts
// ---------------------------------------------------------------------------------------------

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Text,
    Title,
    Name,
    Data,
    PushTitle,
    PushText,
    Extension,
}

impl Place {
    fn field(self) -> &'static str {
        match self {
            Self::Text => "message.text",
            Self::Title => "message.title",
            Self::Name => "message.name",
            Self::Data => "message.data",
            Self::PushTitle => "options.push.title",
            Self::PushText => "options.push.text",
            Self::Extension => "options.extension",
        }
    }

    /// The least and the most bytes that the reader of jobs allows there.
    fn bytes(self) -> (usize, usize) {
        match self {
            Self::Text => (1, TEXT_BYTES_MAX),
            Self::Title | Self::Name => (1, LINE_BYTES_MAX),
            Self::PushTitle => (0, LINE_BYTES_MAX),
            Self::PushText => (0, TEXT_BYTES_MAX),
            Self::Data | Self::Extension => (0, DATA_BYTES_MAX),
        }
    }

    fn put(self, head: &mut Head, rendered: String) {
        let push = &mut head.options.push;
        match (self, &mut head.content) {
            (Self::Text, Content::Text(text) | Content::Notice(text)) => *text = rendered,
            (Self::Text, Content::Mention { text, .. }) => *text = rendered,
            (Self::Title, Content::Location { title, .. }) => *title = rendered,
            (Self::Name, Content::Image(file) | Content::Audio(file)) => file.name = Some(rendered),
            (Self::Name, Content::Video(file) | Content::File(file)) => file.name = Some(rendered),
            (Self::Data, Content::Custom(data)) => *data = joined(rendered),
            (Self::PushTitle, _) => push.get_or_insert_default().title = Some(rendered),
            (Self::PushText, _) => push.get_or_insert_default().text = Some(rendered),
            (Self::Extension, _) => head.options.extension = Some(joined(rendered)),
            // A text is put back to the place that it came from, so this does not happen.
            (Self::Text | Self::Title | Self::Name | Self::Data, _) => {}
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Compiling and rendering
// ---------------------------------------------------------------------------------------------

/// The compiled texts of a message that have placeholders.
struct Texts {
    engine: Environment<'static>,
    depth: Depth,
    texts: Vec<Text>,
}

struct Text {
    place: Place,
    pieces: Vec<Piece>,
}

enum Piece {
    /// JSON that stays unchanged.
    Kept(String),
    /// The whole text, by the name of its template.
    Plain(String),
    /// A text within JSON, by the name of its template.
    Quoted(String),
}

impl Texts {
    fn of(content: &Content, options: &Options) -> Result<Self, Vec<Problem>> {
        let mut compiler = Compiler {
            texts: Self {
                engine: engine(),
                depth: Depth::Flat,
                texts: Vec::new(),
            },
            templates: 0,
            problems: Problems::default(),
        };
        compiler.content(content);
        compiler.options(options);
        compiler.finish()
    }

    /// Compiles a template, unless it nests too deep or calls something that does not exist.
    fn compile(&mut self, name: &str, text: &str) -> Result<(), String> {
        let depth = measure::depth(text, self.engine.syntax())?;
        self.depth = self.depth.max(depth);
        // Compiling nests no deeper than a flat text, however deep rendering goes.
        guarded(Depth::Flat, || {
            let added = self
                .engine
                .add_template_owned(name.to_owned(), text.to_owned());
            added.map_err(|error| why(&error))?;
            let template = self
                .engine
                .get_template(name)
                .map_err(|error| why(&error))?;
            names::missing(&self.engine, &template).map_or(Ok(()), Err)
        })?
    }

    fn render(&self, text: &Text, values: &Value) -> Result<String, Unfilled> {
        let (least, most) = text.place.bytes();
        let mut whole = String::new();
        for piece in &text.pieces {
            match piece {
                Piece::Kept(json) => whole.push_str(json),
                Piece::Plain(template) => whole.push_str(&self.piece(text, template, values)?),
                Piece::Quoted(template) => {
                    let rendered = self.piece(text, template, values)?;
                    whole.push_str(&serde_json::Value::from(rendered).to_string());
                }
            }
            if whole.len() > most {
                break;
            }
        }
        let problem = |what: String| Err(Problem::new(text.place.field(), what).into());
        match whole.len() {
            size if size < least => problem("is empty once it is filled in".to_owned()),
            size if size > most => problem(format!("more than {most} bytes once it is filled in")),
            _ => Ok(whole),
        }
    }

    /// Renders one template. Errors hold values, so they are dropped on the large stack too.
    fn piece(&self, text: &Text, template: &str, values: &Value) -> Result<String, Unfilled> {
        let unfilled = |(what, lacks)| Unfilled {
            problem: Problem::new(text.place.field(), what),
            lacks,
        };
        let render = || {
            let template = self.engine.get_template(template);
            let rendered = template.and_then(|it| it.render(values.clone()));
            rendered.map_err(|error| (why(&error), lacks(&error).map(str::to_owned)))
        };
        guarded(self.depth, render)
            .unwrap_or_else(|broken| Err((broken, None)))
            .map_err(unfilled)
    }
}

/// Runs the engine over a text from outside, with enough stack, and catches panics of the engine.
fn guarded<R>(depth: Depth, work: impl FnOnce() -> R) -> Result<R, String> {
    catch_unwind(AssertUnwindSafe(|| depth.with_room(work)))
        .map_err(|_| "cannot be filled in: the engine for placeholders failed on it".to_owned())
}

fn engine() -> Environment<'static> {
    let mut engine = Environment::new();
    engine.set_auto_escape_callback(|_| AutoEscape::None);
    // The last line break belongs to a text. The delimiters stay the usual ones, so `build`
    // succeeds.
    if let Ok(syntax) = SyntaxConfig::builder().keep_trailing_newline(true).build() {
        engine.set_syntax(syntax);
    }
    engine.set_undefined_behavior(UndefinedBehavior::Strict);
    // A `null` deep inside a value would be written as a word.
    engine.set_formatter(|out, state, value| match value.is_none() {
        true => Err(Error::new(ErrorKind::UndefinedError, "a value is null")),
        false => minijinja::escape_formatter(out, state, value),
    });
    // With it, errors name the variable.
    engine.set_debug(true);
    engine.remove_global("debug");
    // It is for authors of templates, and its work grows with the cube of a value's depth.
    engine.remove_filter("pprint");
    engine
}

struct Compiler {
    texts: Texts,
    templates: usize,
    problems: Problems,
}

impl Compiler {
    fn content(&mut self, content: &Content) {
        match content {
            Content::Text(text) | Content::Notice(text) | Content::Mention { text, .. } => {
                self.plain(Place::Text, text);
            }
            Content::Image(file)
            | Content::Audio(file)
            | Content::Video(file)
            | Content::File(file) => self.plain(Place::Name, file.name.as_deref().unwrap_or("")),
            Content::Location { title, .. } => self.plain(Place::Title, title),
            Content::Custom(data) => self.json(Place::Data, data),
            Content::Raw(_) | Content::Native | Content::Template(_) => {}
        }
    }

    fn options(&mut self, options: &Options) {
        if let Some(push) = &options.push {
            self.plain(Place::PushTitle, push.title.as_deref().unwrap_or(""));
            self.plain(Place::PushText, push.text.as_deref().unwrap_or(""));
        }
        if let Some(extension) = &options.extension
            && extension.get().starts_with('"')
        {
            self.json(Place::Extension, extension);
        }
    }

    fn plain(&mut self, place: Place, text: &str) {
        if has_placeholder(text) {
            let pieces = vec![Piece::Plain(self.template(place, text))];
            self.texts.texts.push(Text { place, pieces });
        }
    }

    /// Compiles the texts within a JSON value, except keys. The rest keeps its bytes.
    fn json(&mut self, place: Place, json: &RawValue) {
        let json = json.get();
        let mut pieces = Vec::new();
        let mut kept = 0;
        for range in json_texts(json) {
            // A text that cannot be parsed has no placeholder and stays unchanged.
            let text: Result<String, _> = serde_json::from_str(&json[range.clone()]);
            if let Ok(text) = text
                && has_placeholder(&text)
            {
                pieces.push(Piece::Kept(json[kept..range.start].to_owned()));
                pieces.push(Piece::Quoted(self.template(place, &text)));
                kept = range.end;
            }
        }
        if !pieces.is_empty() {
            pieces.push(Piece::Kept(json[kept..].to_owned()));
            self.texts.texts.push(Text { place, pieces });
        }
    }

    /// Compiles a template and returns its name.
    fn template(&mut self, place: Place, text: &str) -> String {
        self.templates += 1;
        let name = self.templates.to_string();
        if self.templates > TEXTS_MAX {
            if self.templates == TEXTS_MAX + 1 {
                let what = format!("more than {TEXTS_MAX} texts with placeholders");
                self.problems.push(Problem::new(place.field(), what));
            }
        } else if let Err(what) = self.texts.compile(&name, text) {
            let what = format!("not a template: {what}");
            self.problems.push(Problem::new(place.field(), what));
        }
        name
    }

    fn finish(mut self) -> Result<Texts, Vec<Problem>> {
        if !self.problems.is_empty() {
            return Err(self.problems.into());
        }
        let fuel = FUEL / self.templates.max(1) as u64;
        self.texts.engine.set_fuel(Some(fuel));
        Ok(self.texts)
    }
}

fn has_placeholder(text: &str) -> bool {
    text.contains("{{") || text.contains("{%")
}

/// The ranges of the texts in a JSON value, with their quotes and without keys.
fn json_texts(json: &str) -> Vec<std::ops::Range<usize>> {
    let bytes = json.as_bytes();
    let mut texts = Vec::new();
    let mut at = 0;
    while let Some(start) = bytes[at..].iter().position(|byte| *byte == b'"') {
        let start = at + start;
        let mut end = start + 1;
        while end < bytes.len() && bytes[end] != b'"' {
            end += if bytes[end] == b'\\' { 2 } else { 1 };
        }
        at = (end + 1).min(bytes.len());
        let mut after = bytes[at..]
            .iter()
            .filter(|byte| !byte.is_ascii_whitespace());
        if after.next() != Some(&b':') {
            texts.push(start..at);
        }
    }
    texts
}

/// The engine's message without its internal name of the template.
fn why(error: &Error) -> String {
    if error.kind() == ErrorKind::OutOfFuel {
        return "takes too much work, or makes too long a text".to_owned();
    }
    if let Some(variable) = lacks(error) {
        return format!("undefined variable {variable:?}");
    }
    let line = error.line().unwrap_or(1);
    match error.detail() {
        Some(detail) => {
            let detail = shorten(detail, DETAIL_SHOWN);
            format!("{}: {detail} (line {line})", error.kind())
        }
        None => format!("{} (line {line})", error.kind()),
    }
}

/// The most bytes that are repeated of the engine's message.
const DETAIL_SHOWN: usize = 200;

/// The variable that is missing according to the engine's error.
fn lacks(error: &Error) -> Option<&str> {
    let (before, _) = error.detail()?.split_once("` is undefined")?;
    Some(before.rsplit_once('`')?.1)
}

#[cfg(test)]
mod tests;
