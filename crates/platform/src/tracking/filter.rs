//! The language in which MLflow's clients search: `metrics.loss < 0.1 AND tags.team = 'core'`, and `metrics.loss DESC` to order by.
//!
//! One parser serves everything that can be searched. A [`Grammar`] says which prefixes and attributes there are and what each may be
//! compared with; [`parse`] gives [`Clause`]s that a caller asks about one value at a time, and [`order`] gives the keys to sort by.
//!
//! ```text
//! tags.`team name` = 'core' AND run_id IN ('a', 'b')
//!   └entity └key     └test       └attribute └test
//! ```
//! Clauses are joined by `AND` alone, so nothing nests and nothing here recurses. As in MLflow a quoted text is taken as it stands:
//! a doubled quote stays two. What is deliberately missing: `OR` and parentheses.
//!
//! A filter is hostile input: whoever asks many values about one with [`Clause::is_costly`] looks at the clock between them, and does it
//! where nobody else waits.

use regex::{Regex, RegexBuilder};

use crate::error::{Error, Result};

/// Longest filter in bytes.
pub(crate) const FILTER_BYTES_MAX: usize = 64 * 1024;
/// Most clauses of a filter.
const CLAUSES_MAX: usize = 128;
/// Most texts in the list of an `IN`.
const LIST_ITEMS_MAX: usize = 2000;
/// Most keys to order by.
const ORDER_ITEMS_MAX: usize = 32;
/// Longest part between two `%` that has a `_` in it, in characters: it is tried at each place of a text.
const WILD_CHARS_MAX: usize = 256;
/// Longest regular expression in bytes.
const EXPRESSION_BYTES_MAX: usize = 1024;
/// Memory of a compiled regular expression, and of what it remembers while it searches, in bytes.
const EXPRESSION_MEMORY_BYTES_MAX: usize = 256 << 10;
/// Deepest nesting of a regular expression.
const EXPRESSION_DEPTH_MAX: u32 = 32;
/// Longest key to order by in bytes.
const ORDER_BYTES_MAX: usize = 1024;

/// What stands before the dot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entity {
    /// A field of the thing itself.
    Attribute,
    /// Its latest metric.
    Metric,
    /// Its parameter.
    Param,
    /// Its tag.
    Tag,
    /// A data set it used.
    Dataset,
    /// What a trace was asked with.
    Metadata,
    /// A part of a trace.
    Span,
    /// What people or judges said about a trace.
    Feedback,
    /// What was expected of a trace.
    Expectation,
}

/// How two values are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    /// `=`
    Eq,
    /// `!=`
    Ne,
    /// `>`
    Gt,
    /// `>=`
    Ge,
    /// `<`
    Lt,
    /// `<=`
    Le,
    /// `LIKE`: `%` is any text, `_` any character
    Like,
    /// `ILIKE`: the same, upper and lower case alike
    Ilike,
    /// `RLIKE`: a regular expression that is found somewhere in the text
    Rlike,
    /// `IN`
    In,
    /// `NOT IN`
    NotIn,
    /// `IS NULL`: it is not there
    IsNull,
    /// `IS NOT NULL`
    IsNotNull,
}

impl Op {
    fn symbol(self) -> &'static str {
        match self {
            Self::Eq => "=",
            Self::Ne => "!=",
            Self::Gt => ">",
            Self::Ge => ">=",
            Self::Lt => "<",
            Self::Le => "<=",
            Self::Like => "LIKE",
            Self::Ilike => "ILIKE",
            Self::Rlike => "RLIKE",
            Self::In => "IN",
            Self::NotIn => "NOT IN",
            Self::IsNull => "IS NULL",
            Self::IsNotNull => "IS NOT NULL",
        }
    }
}

/// What values of a kind may be compared with, and how.
#[derive(Debug)]
pub(crate) struct Rule {
    /// The comparators there are.
    pub(crate) ops: &'static [Op],
    /// What stands on the right.
    pub(crate) value: ValueKind,
}

/// What stands on the right of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ValueKind {
    /// A number.
    Number,
    /// A quoted text.
    Text,
    /// Either.
    Any,
}

/// Numbers.
pub(crate) const NUMBER: Rule = Rule { ops: &[Op::Eq, Op::Ne, Op::Gt, Op::Ge, Op::Lt, Op::Le], value: ValueKind::Number };
/// Texts.
pub(crate) const TEXT: Rule = Rule { ops: &[Op::Eq, Op::Ne, Op::Like, Op::Ilike], value: ValueKind::Text };
/// Texts that may be compared with a list.
pub(crate) const TEXT_LIST: Rule = Rule { ops: &[Op::Eq, Op::Ne, Op::Like, Op::Ilike, Op::In, Op::NotIn], value: ValueKind::Text };
/// Texts that may be absent.
pub(crate) const TEXT_NULL: Rule = Rule { ops: &[Op::Eq, Op::Ne, Op::Like, Op::Ilike, Op::IsNull, Op::IsNotNull], value: ValueKind::Text };
/// Ids: no patterns.
pub(crate) const ID_LIST: Rule = Rule { ops: &[Op::Eq, Op::Ne, Op::In, Op::NotIn], value: ValueKind::Text };

/// A field that can be searched by.
#[derive(Debug)]
pub(crate) struct Attribute {
    /// Its names; the first is what [`Clause::key`] says.
    pub(crate) names: &'static [&'static str],
    /// What it may be compared with.
    pub(crate) rule: &'static Rule,
}

/// What can be searched for.
#[derive(Debug)]
pub(crate) struct Grammar {
    /// What may stand before the dot.
    pub(crate) prefixes: &'static [(&'static str, Entity)],
    /// Fields.
    pub(crate) attributes: &'static [Attribute],
    /// The other entities: what they may be compared with, and their keys if these are fixed.
    pub(crate) entities: &'static [(Entity, &'static Rule, &'static [&'static str])],
    /// What results can be ordered by: fields, by their first names.
    pub(crate) order_attributes: &'static [&'static str],
    /// What results can be ordered by: other entities.
    pub(crate) order_entities: &'static [Entity],
}

/// One comparison.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Clause {
    /// What kind of thing.
    pub(crate) entity: Entity,
    /// Which one.
    pub(crate) key: String,
    /// What must hold for it.
    pub(crate) test: Test,
}

/// What must hold for a value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Test {
    /// It is there, or it is not.
    Present(bool),
    /// A number compares.
    Number(Op, Number),
    /// A text is this one, or is not.
    Equal(String, bool),
    /// A text is like this one.
    Like(Pattern),
    /// A regular expression is found in a text.
    Found(Expression),
    /// A text is one of these, or is not.
    In(Vec<String>, bool),
}

/// A number as it was written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Number {
    /// Without point or exponent.
    Integer(i64),
    /// Any other.
    Real(f64),
}

/// One key to order by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Order {
    /// What kind of thing.
    pub(crate) entity: Entity,
    /// Which one.
    pub(crate) key: String,
    /// Smallest first.
    pub(crate) ascending: bool,
}

impl Test {
    /// Whether a text passes. What is absent passes nothing but `IS NULL`.
    pub(crate) fn text(&self, value: Option<&str>) -> bool {
        match (self, value) {
            (Self::Present(present), value) => value.is_some() == *present,
            (_, None) | (Self::Number(..), _) => false,
            (Self::Equal(text, equal), Some(value)) => (value == text) == *equal,
            (Self::Like(pattern), Some(value)) => pattern.matches(value),
            (Self::Found(expression), Some(value)) => expression.0.is_match(value),
            (Self::In(texts, within), Some(value)) => texts.iter().any(|text| text == value) == *within,
        }
    }

    /// Whether a number passes. NaN differs from everything and compares with nothing else.
    pub(crate) fn real(&self, value: Option<f64>) -> bool {
        match (self, value) {
            (Self::Present(present), value) => value.is_some() == *present,
            (Self::Number(op, number), Some(value)) => compare(*op, value.partial_cmp(&number.real())),
            _ => false,
        }
    }

    /// Whether a whole number passes.
    pub(crate) fn integer(&self, value: Option<i64>) -> bool {
        match (self, value) {
            (Self::Number(op, Number::Integer(number)), Some(value)) => compare(*op, Some(value.cmp(number))),
            #[expect(clippy::cast_precision_loss, reason = "who writes a point means about this much")]
            (_, value) => self.real(value.map(|value| value as f64)),
        }
    }
}

impl Clause {
    /// Whether one text can take much more than reading it.
    pub(crate) fn is_costly(&self) -> bool {
        match &self.test {
            Test::Found(_) => true,
            Test::Like(pattern) => pattern.segments.iter().any(|segment| matches!(segment, Segment::Wild(_))),
            _ => false,
        }
    }
}

/// A regular expression, within bounds.
#[derive(Debug, Clone)]
pub(crate) struct Expression(Regex);

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Expression {
    fn new(text: &str) -> Result<Self> {
        if text.len() > EXPRESSION_BYTES_MAX {
            return Err(Error::invalid(format!("a regular expression has at most {EXPRESSION_BYTES_MAX} bytes")));
        }
        let mut builder = RegexBuilder::new(text);
        builder.size_limit(EXPRESSION_MEMORY_BYTES_MAX).dfa_size_limit(EXPRESSION_MEMORY_BYTES_MAX).nest_limit(EXPRESSION_DEPTH_MAX);
        builder.build().map(Self).map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => Error::invalid(format!("the regular expression '{}' is too large", shown(text))),
            _ => Error::invalid(format!(
                "Invalid regular expression '{}': there are no look-arounds and no backreferences, so that every text is read once",
                shown(text)
            )),
        })
    }
}

impl Number {
    #[expect(clippy::cast_precision_loss, reason = "compared with a number that has a point")]
    fn real(self) -> f64 {
        match self {
            Self::Integer(number) => number as f64,
            Self::Real(number) => number,
        }
    }
}

fn compare(op: Op, ordering: Option<std::cmp::Ordering>) -> bool {
    match op {
        Op::Ne => ordering.is_none_or(std::cmp::Ordering::is_ne),
        Op::Eq => ordering.is_some_and(std::cmp::Ordering::is_eq),
        Op::Gt => ordering.is_some_and(std::cmp::Ordering::is_gt),
        Op::Ge => ordering.is_some_and(std::cmp::Ordering::is_ge),
        Op::Lt => ordering.is_some_and(std::cmp::Ordering::is_lt),
        Op::Le => ordering.is_some_and(std::cmp::Ordering::is_le),
        _ => false,
    }
}

/// A pattern with `%` and `_`, cut at its `%`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pattern {
    segments: Vec<Segment>,
    fold: bool,
}

/// What stands between two `%`.
#[derive(Debug, Clone, PartialEq)]
enum Segment {
    /// No `_`: found by a linear search.
    Plain(String),
    /// Characters; none for `_`.
    Wild(Vec<Option<char>>),
}

impl Pattern {
    fn new(text: &str, fold: bool) -> Result<Self> {
        let text = if fold { text.to_lowercase() } else { text.to_owned() };
        let segment = |part: &str| match part.contains('_') {
            false => Ok(Segment::Plain(part.to_owned())),
            true if part.chars().count() > WILD_CHARS_MAX => {
                Err(Error::invalid(format!("a part of a pattern that has a '_' is at most {WILD_CHARS_MAX} characters long")))
            }
            true => Ok(Segment::Wild(part.chars().map(|c| (c != '_').then_some(c)).collect())),
        };
        Ok(Self { segments: text.split('%').map(segment).collect::<Result<_>>()?, fold })
    }

    fn matches(&self, text: &str) -> bool {
        if self.fold { self.matches_folded(&text.to_lowercase()) } else { self.matches_folded(text) }
    }

    /// The first segment begins the text, the last one ends it, and the others follow each other between: leftmost is best.
    fn matches_folded(&self, text: &str) -> bool {
        let Some((first, others)) = self.segments.split_first() else { return text.is_empty() };
        let Some(mut rest) = first.begins(text) else { return false };
        let Some((last, between)) = others.split_last() else { return rest.is_empty() };
        for segment in between {
            match segment.found(rest) {
                Some(after) => rest = after,
                None => return false,
            }
        }
        last.ends(rest)
    }
}

impl Segment {
    /// What follows it in a text that begins with it.
    fn begins<'a>(&self, text: &'a str) -> Option<&'a str> {
        match self {
            Self::Plain(plain) => text.strip_prefix(plain.as_str()),
            Self::Wild(wild) => {
                let mut chars = text.chars();
                wild.iter().all(|c| chars.next().is_some_and(|next| c.is_none_or(|c| c == next))).then_some(chars.as_str())
            }
        }
    }

    /// What follows its first place in a text.
    fn found<'a>(&self, text: &'a str) -> Option<&'a str> {
        match self {
            Self::Plain(plain) => text.find(plain.as_str()).and_then(|at| text.get(at + plain.len()..)),
            Self::Wild(_) => text.char_indices().find_map(|(at, _)| self.begins(text.get(at..)?)),
        }
    }

    fn ends(&self, text: &str) -> bool {
        match self {
            Self::Plain(plain) => text.ends_with(plain.as_str()),
            Self::Wild(wild) => {
                let at = text.char_indices().rev().nth(wild.len().saturating_sub(1)).and_then(|(at, _)| text.get(at..));
                at.and_then(|end| self.begins(end)).is_some_and(str::is_empty)
            }
        }
    }
}

/// Reads a filter. An empty one has no clauses and passes everything.
///
/// # Errors
/// `invalid` with what is wrong, in MLflow's words where clients look at them.
pub(crate) fn parse(grammar: &Grammar, text: &str) -> Result<Vec<Clause>> {
    if text.len() > FILTER_BYTES_MAX {
        return Err(Error::invalid(format!("the filter is longer than {FILTER_BYTES_MAX} bytes")));
    }
    let mut tokens = Tokens { text, at: 0 };
    let mut clauses = Vec::new();
    loop {
        match tokens.next()? {
            None if clauses.is_empty() => return Ok(clauses),
            Some(token) if clauses.len() < CLAUSES_MAX => clauses.push(clause(grammar, token, &mut tokens)?),
            Some(_) => return Err(Error::invalid(format!("the filter has more than {CLAUSES_MAX} comparisons"))),
            None => return Err(Error::invalid("Invalid clause(s) in filter string: it ends with 'AND'")),
        }
        match tokens.next()? {
            None => return Ok(clauses),
            Some(token) if token.is_word("AND") => {}
            Some(token) => return Err(stray(&token)),
        }
    }
}

/// Reads the keys to order by, such as `metrics.loss DESC`.
///
/// # Errors
/// `invalid` with what is wrong.
pub(crate) fn order(grammar: &Grammar, texts: &[String]) -> Result<Vec<Order>> {
    if texts.len() > ORDER_ITEMS_MAX {
        return Err(Error::invalid(format!("`order_by` has more than {ORDER_ITEMS_MAX} fields")));
    }
    let mut orders: Vec<Order> = Vec::with_capacity(texts.len());
    for text in texts {
        let order = order_item(grammar, text)?;
        if orders.iter().any(|known| known.entity == order.entity && known.key == order.key) {
            return Err(Error::invalid(format!("`order_by` contains duplicate fields: {texts:?}")));
        }
        orders.push(order);
    }
    Ok(orders)
}

fn order_item(grammar: &Grammar, text: &str) -> Result<Order> {
    let wrong = || Error::invalid(format!("Invalid order_by clause '{}'. Could not be parsed.", shown(text)));
    if text.len() > ORDER_BYTES_MAX {
        return Err(wrong());
    }
    let mut tokens = Tokens { text, at: 0 };
    let first = tokens.next()?.ok_or_else(wrong)?;
    let ascending = match tokens.next()? {
        None => true,
        Some(token) if token.is_word("ASC") => true,
        Some(token) if token.is_word("DESC") => false,
        Some(_) => return Err(Error::invalid(format!("Invalid ordering key in order_by clause '{}'.", shown(text)))),
    };
    if tokens.next()?.is_some() {
        return Err(wrong());
    }
    let (prefix, key) = name(&first).ok_or_else(wrong)?;
    let entity = entity(grammar, prefix)?;
    if entity == Entity::Attribute {
        let key =
            attribute(grammar, &key).map_or(key.as_str(), |attribute| attribute.names.first().copied().unwrap_or_default()).to_owned();
        if !grammar.order_attributes.contains(&key.as_str()) {
            return Err(unknown_key("attribute", &key, grammar.order_attributes));
        }
        return Ok(Order { entity, key, ascending });
    }
    if !grammar.order_entities.contains(&entity) {
        return Err(Error::invalid(format!("Invalid order_by entity: '{}'", prefix.unwrap_or_default())));
    }
    Ok(Order { entity, key, ascending })
}

/// One comparison whose first token was read.
fn clause(grammar: &Grammar, first: Token<'_>, tokens: &mut Tokens<'_>) -> Result<Clause> {
    let (prefix, key) = name(&first).ok_or_else(|| stray(&first))?;
    let entity = entity(grammar, prefix)?;
    let (key, rule) = match entity {
        Entity::Attribute => {
            let known = attribute(grammar, &key).ok_or_else(|| {
                let names: Vec<_> = grammar.attributes.iter().filter_map(|known| known.names.first().copied()).collect();
                unknown_key("attribute", &key, &names)
            })?;
            (known.names.first().copied().unwrap_or_default().to_owned(), known.rule)
        }
        _ => {
            let found = grammar.entities.iter().find(|(known, ..)| *known == entity);
            let (_, rule, keys) = found.ok_or_else(|| Error::invalid(format!("Invalid entity type '{}'", prefix.unwrap_or_default())))?;
            if !keys.is_empty() && !keys.contains(&key.as_str()) {
                return Err(unknown_key(prefix.unwrap_or_default(), &key, keys));
            }
            (key, *rule)
        }
    };
    let what = prefix.unwrap_or("attribute");
    let op = comparator(tokens)?;
    if !rule.ops.contains(&op) {
        let known: Vec<_> = rule.ops.iter().map(|op| op.symbol()).collect();
        return Err(match op {
            Op::IsNull | Op::IsNotNull => {
                Error::invalid(format!("IS NULL / IS NOT NULL is only supported for tags and params, not for '{what}' '{}'", shown(&key)))
            }
            Op::In | Op::NotIn if entity == Entity::Attribute => {
                let lists = grammar.attributes.iter().filter(|known| known.rule.ops.contains(&Op::In));
                let names: Vec<_> = lists.filter_map(|known| known.names.first().copied()).collect();
                let names = names.join("', '");
                Error::invalid(format!("Only ['{names}'] attributes support comparison with a list of quoted string values."))
            }
            _ => Error::invalid(format!(
                "Invalid comparator '{}' not one of '{}' for {what} '{}'",
                op.symbol(),
                known.join("', '"),
                shown(&key)
            )),
        });
    }
    let test = match op {
        Op::IsNull | Op::IsNotNull => Test::Present(op == Op::IsNotNull),
        Op::In | Op::NotIn => Test::In(list(tokens)?, op == Op::In),
        _ => value(rule, what, op, tokens)?,
    };
    Ok(Clause { entity, key, test })
}

fn comparator(tokens: &mut Tokens<'_>) -> Result<Op> {
    let incomplete = || Error::invalid("Invalid clause(s) in filter string: a comparison has a name, a comparator and a value");
    let token = tokens.next()?.ok_or_else(incomplete)?;
    let word = |token: &Token<'_>, text: &str| token.is_word(text);
    Ok(match &token {
        Token::Operator(symbol) => match *symbol {
            "=" => Op::Eq,
            "!=" => Op::Ne,
            ">" => Op::Gt,
            ">=" => Op::Ge,
            "<" => Op::Lt,
            "<=" => Op::Le,
            other => {
                return Err(Error::invalid(format!("Invalid comparator '{}' not one of '=', '!=', '>', '>=', '<', '<='", shown(other))));
            }
        },
        token if word(token, "LIKE") => Op::Like,
        token if word(token, "ILIKE") => Op::Ilike,
        token if word(token, "RLIKE") => Op::Rlike,
        token if word(token, "IN") => Op::In,
        token if word(token, "NOT") => match tokens.next()?.ok_or_else(incomplete)? {
            token if word(&token, "IN") => Op::NotIn,
            token => return Err(stray(&token)),
        },
        token if word(token, "IS") => match tokens.next()?.ok_or_else(incomplete)? {
            token if word(&token, "NULL") => Op::IsNull,
            token if word(&token, "NOT") => match tokens.next()?.ok_or_else(incomplete)? {
                token if word(&token, "NULL") => Op::IsNotNull,
                token => return Err(stray(&token)),
            },
            token => return Err(stray(&token)),
        },
        token => return Err(stray(token)),
    })
}

fn value(rule: &Rule, what: &str, op: Op, tokens: &mut Tokens<'_>) -> Result<Test> {
    let token = tokens.next()?;
    let found = token.as_ref().map_or_else(|| "nothing".to_owned(), |token| shown(token.source()).to_owned());
    let numeric = matches!(op, Op::Gt | Op::Ge | Op::Lt | Op::Le);
    match (rule.value, token) {
        (ValueKind::Number | ValueKind::Any, Some(Token::Number(number, _))) => Ok(Test::Number(op, number)),
        (ValueKind::Number, _) => Err(Error::invalid(format!("Expected numeric value type for {what}. Found {found}"))),
        (ValueKind::Any, _) if numeric => Err(Error::invalid(format!("Expected a numeric value for {what}. Got value {found}"))),
        (_, Some(Token::Quoted { text, .. })) => Ok(match op {
            Op::Like | Op::Ilike => Test::Like(Pattern::new(text, op == Op::Ilike)?),
            Op::Rlike => Test::Found(Expression::new(text)?),
            _ => Test::Equal(text.to_owned(), op == Op::Eq),
        }),
        (_, Some(Token::Name { .. })) => Err(Error::invalid(format!(
            "Parameter value is either not quoted or unidentified quote types used for string value {found}. Use either single or double quotes."
        ))),
        _ => Err(Error::invalid(format!("Expected a quoted string value for {what} (e.g. 'my-value'). Got value {found}"))),
    }
}

fn list(tokens: &mut Tokens<'_>) -> Result<Vec<String>> {
    let wrong =
        || Error::invalid("While parsing a list in the query, expected a non-empty list of string values, but got ill-formed list.");
    if tokens.next()?.ok_or_else(wrong)? != Token::Open {
        return Err(wrong());
    }
    let mut texts = Vec::new();
    loop {
        match tokens.next()?.ok_or_else(wrong)? {
            Token::Quoted { text, .. } if texts.len() < LIST_ITEMS_MAX => texts.push(text.to_owned()),
            Token::Quoted { .. } => return Err(Error::invalid(format!("a list in the filter has more than {LIST_ITEMS_MAX} texts"))),
            Token::Close if !texts.is_empty() => return Ok(texts),
            _ => return Err(wrong()),
        }
        match tokens.next()?.ok_or_else(wrong)? {
            Token::Close => return Ok(texts),
            Token::Comma => {}
            _ => return Err(wrong()),
        }
    }
}

fn entity(grammar: &Grammar, prefix: Option<&str>) -> Result<Entity> {
    let Some(prefix) = prefix else { return Ok(Entity::Attribute) };
    let found = grammar.prefixes.iter().find(|(known, _)| *known == prefix);
    found.map(|(_, entity)| *entity).ok_or_else(|| {
        let known: Vec<_> = grammar.prefixes.iter().map(|(known, _)| *known).collect();
        Error::invalid(format!("Invalid entity type '{}'. Valid values are ['{}']", shown(prefix), known.join("', '")))
    })
}

fn attribute(grammar: &Grammar, key: &str) -> Option<&'static Attribute> {
    grammar.attributes.iter().find(|known| known.names.contains(&key))
}

fn unknown_key(what: &str, key: &str, known: &[&str]) -> Error {
    Error::invalid(format!("Invalid {what} key '{}' specified. Valid keys are '['{}']'", shown(key), known.join("', '")))
}

fn stray(token: &Token<'_>) -> Error {
    Error::invalid(format!("Invalid clause(s) in filter string: '{}'", shown(token.source())))
}

/// The beginning of what the caller wrote, for a message.
fn shown(text: &str) -> &str {
    text.get(..text.floor_char_boundary(100)).unwrap_or_default()
}

/// Prefix and key of a name.
fn name<'a>(token: &Token<'a>) -> Option<(Option<&'a str>, String)> {
    match token {
        Token::Name { prefix, key, .. } => Some((*prefix, (*key).to_owned())),
        // `"start_time"` is a name in front of a comparator.
        Token::Quoted { text, source } if source.starts_with('"') => Some((None, (*text).to_owned())),
        _ => None,
    }
}

/// A word of the language.
#[derive(Debug, Clone, PartialEq)]
enum Token<'a> {
    /// `key`, `prefix.key`, ``prefix.`any key` ``.
    Name { prefix: Option<&'a str>, key: &'a str, source: &'a str },
    /// A text in quotes.
    Quoted { text: &'a str, source: &'a str },
    /// A number.
    Number(Number, &'a str),
    /// `=` and its like.
    Operator(&'a str),
    /// `(`
    Open,
    /// `)`
    Close,
    /// `,`
    Comma,
}

impl<'a> Token<'a> {
    fn source(&self) -> &'a str {
        match self {
            Self::Name { source, .. } | Self::Quoted { source, .. } | Self::Number(_, source) | Self::Operator(source) => source,
            Self::Open => "(",
            Self::Close => ")",
            Self::Comma => ",",
        }
    }

    /// Whether it is this keyword.
    fn is_word(&self, word: &str) -> bool {
        matches!(self, Self::Name { prefix: None, source, .. } if source.eq_ignore_ascii_case(word))
    }
}

/// The text, cut into words.
struct Tokens<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Tokens<'a> {
    fn next(&mut self) -> Result<Option<Token<'a>>> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let text = rest.trim_start();
        self.at += rest.len() - text.len();
        let Some(first) = text.chars().next() else { return Ok(None) };
        let (token, bytes) = match first {
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            ',' => (Token::Comma, 1),
            '<' | '>' | '=' | '!' | '~' => {
                let symbol = text.get(..span(text, |c| "<>=!~".contains(c))).unwrap_or_default();
                (Token::Operator(symbol), symbol.len())
            }
            '\'' | '"' if !Self::continues(text, first)? => {
                let bytes = quoted_bytes(text, first)?;
                let source = text.get(..bytes).unwrap_or_default();
                (Token::Quoted { text: inner(source), source }, bytes)
            }
            '0'..='9' | '-' | '.' => number(text)?,
            _ => named(text)?,
        };
        self.at += bytes;
        Ok(Some(token))
    }

    /// Whether a quoted piece is the prefix of a name: `"metrics".loss`.
    fn continues(text: &str, quote: char) -> Result<bool> {
        Ok(quote == '"' && text.get(quoted_bytes(text, quote)?..).is_some_and(|rest| rest.starts_with('.')))
    }
}

/// Bytes at the beginning that `within` accepts.
fn span(text: &str, within: impl Fn(char) -> bool) -> usize {
    text.find(|c| !within(c)).unwrap_or(text.len())
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '$' | '#' | '@')
}

/// Length of the quoted piece at the beginning, quotes included. A doubled quote and, but for backticks, one after a backslash do not end it.
fn quoted_bytes(text: &str, quote: char) -> Result<usize> {
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        if c == '\\' && quote != '`' && chars.peek().is_some_and(|(_, next)| *next == quote) && closes_later(text, at, quote) {
            chars.next();
        } else if c == quote {
            match chars.peek() {
                Some((_, next)) if *next == quote => drop(chars.next()),
                _ => return Ok(at + quote.len_utf8()),
            }
        }
    }
    Err(Error::invalid(format!("Invalid clause(s) in filter string: the quote of '{}' is not closed", shown(text))))
}

/// Whether the quote after the backslash at `at` has another one after it: else it is what closes the text.
fn closes_later(text: &str, at: usize, quote: char) -> bool {
    text.get(at + 2..).is_some_and(|rest| rest.contains(quote))
}

/// Without the quotes around it.
fn inner(source: &str) -> &str {
    source.get(1..source.len().saturating_sub(1)).unwrap_or_default()
}

fn number(text: &str) -> Result<(Token<'_>, usize)> {
    let digits = |from: usize| span(text.get(from..).unwrap_or_default(), |c| c.is_ascii_digit());
    let mut bytes = usize::from(text.starts_with('-'));
    bytes += digits(bytes);
    let mut whole = true;
    if text.get(bytes..).is_some_and(|rest| rest.starts_with('.')) {
        whole = false;
        bytes += 1 + digits(bytes + 1);
    }
    if text.get(bytes..).is_some_and(|rest| rest.starts_with(['e', 'E'])) {
        let sign = usize::from(text.get(bytes + 1..).is_some_and(|rest| rest.starts_with(['-', '+'])));
        let exponent = digits(bytes + 1 + sign);
        if exponent > 0 {
            whole = false;
            bytes += 1 + sign + exponent;
        }
    }
    let source = text.get(..bytes).unwrap_or_default();
    let integer = if whole { source.parse().ok().map(Number::Integer) } else { None };
    let number = integer.or_else(|| source.parse().ok().map(Number::Real));
    match number {
        Some(number) if !text.get(bytes..).is_some_and(|rest| rest.starts_with(is_word)) => Ok((Token::Number(number, source), bytes)),
        _ => Err(Error::invalid(format!("Invalid clause(s) in filter string: '{}'", shown(text)))),
    }
}

fn plain(source: &str) -> &str {
    if source.starts_with(['`', '"']) { inner(source) } else { source }
}

fn named(text: &str) -> Result<(Token<'_>, usize)> {
    let piece = |from: usize| -> Result<usize> {
        let rest = text.get(from..).unwrap_or_default();
        match rest.chars().next() {
            Some(quote @ ('`' | '"')) => quoted_bytes(rest, quote),
            Some(c) if is_word(c) => Ok(span(rest, is_word)),
            _ => Err(Error::invalid(format!("Invalid clause(s) in filter string: '{}'", shown(text)))),
        }
    };
    let first = piece(0)?;
    let mut bytes = first;
    while text.get(bytes..).is_some_and(|rest| rest.starts_with('.')) {
        bytes += 1 + piece(bytes + 1)?;
    }
    let source = text.get(..bytes).unwrap_or_default();
    let token = match bytes > first {
        true => Token::Name { prefix: text.get(..first).map(plain), key: plain(text.get(first + 1..bytes).unwrap_or_default()), source },
        false => Token::Name { prefix: None, key: plain(source), source },
    };
    Ok((token, bytes))
}

#[cfg(test)]
mod tests;
