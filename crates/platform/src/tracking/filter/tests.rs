//! What MLflow's own filters mean, and what is refused. The expectations were read off MLflow's parser.

use super::*;

const RUNS: Grammar = Grammar {
    prefixes: &[
        ("metric", Entity::Metric),
        ("metrics", Entity::Metric),
        ("param", Entity::Param),
        ("params", Entity::Param),
        ("tag", Entity::Tag),
        ("tags", Entity::Tag),
        ("attribute", Entity::Attribute),
        ("attributes", Entity::Attribute),
        ("dataset", Entity::Dataset),
    ],
    attributes: &[
        Attribute { names: &["run_id"], rule: &TEXT_LIST },
        Attribute { names: &["run_name", "run name", "Run Name"], rule: &TEXT },
        Attribute { names: &["start_time", "created"], rule: &NUMBER },
    ],
    entities: &[
        (Entity::Metric, &NUMBER, &[]),
        (Entity::Param, &TEXT_NULL, &[]),
        (Entity::Tag, &TEXT_NULL, &[]),
        (Entity::Dataset, &TEXT_LIST, &["name", "digest", "context"]),
    ],
    order_attributes: &["run_id", "start_time"],
    order_entities: &[Entity::Metric, Entity::Param, Entity::Tag],
};

fn clauses(text: &str) -> Vec<Clause> {
    parse(&RUNS, text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn one(text: &str) -> Clause {
    let mut all = clauses(text);
    assert_eq!(all.len(), 1, "{text}");
    all.remove(0)
}

fn refused(text: &str) -> String {
    match parse(&RUNS, text) {
        Ok(clauses) => panic!("{text}: {clauses:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn names_in_all_their_spellings() {
    for (text, entity, key) in [
        ("metrics.loss = 1", Entity::Metric, "loss"),
        ("metric.loss=1", Entity::Metric, "loss"),
        ("metrics.`val loss` = 1", Entity::Metric, "val loss"),
        ("metrics.\"val/loss: x\" = 1", Entity::Metric, "val/loss: x"),
        ("`metrics`.loss = 1", Entity::Metric, "loss"),
        ("`metrics`.`loss` = 1", Entity::Metric, "loss"),
        ("\"metrics\".loss = 1", Entity::Metric, "loss"),
        ("params.a.b.c = 'x'", Entity::Param, "a.b.c"),
        ("tags.mlflow.source.name = 'x'", Entity::Tag, "mlflow.source.name"),
        ("tags.`mlflow.parentRunId` = 'x'", Entity::Tag, "mlflow.parentRunId"),
        ("tags.and = 'x'", Entity::Tag, "and"),
        ("tags.größe = 'x'", Entity::Tag, "größe"),
        ("run_id = 'x'", Entity::Attribute, "run_id"),
        ("`run_id` = 'x'", Entity::Attribute, "run_id"),
        ("\"run_id\" = 'x'", Entity::Attribute, "run_id"),
        ("attribute.`Run Name` = 'x'", Entity::Attribute, "run_name"),
        ("attributes.created > 3", Entity::Attribute, "start_time"),
        ("dataset.name = 'x'", Entity::Dataset, "name"),
        ("params.1st = 'x'", Entity::Param, "1st"),
    ] {
        let clause = one(text);
        assert_eq!((clause.entity, clause.key.as_str()), (entity, key), "{text}");
    }
}

#[test]
fn values_in_all_their_spellings() {
    for (text, test) in [
        ("params.a = 'x'", Test::Equal("x".into(), true)),
        ("params.a = \"x\"", Test::Equal("x".into(), true)),
        ("params.a != ''", Test::Equal(String::new(), false)),
        ("params.a = \"it's\"", Test::Equal("it's".into(), true)),
        ("params.a = 'it''s'", Test::Equal("it''s".into(), true)),
        ("params.a = 'AND'", Test::Equal("AND".into(), true)),
        ("params.a = 'c:\\'", Test::Equal("c:\\".into(), true)),
        ("params.a IS NULL", Test::Present(false)),
        ("params.a is not null", Test::Present(true)),
        ("run_id IN ('a')", Test::In(vec!["a".into()], true)),
        ("run_id in ('a',\"b\" , 'c',)", Test::In(vec!["a".into(), "b".into(), "c".into()], true)),
        ("run_id NOT  IN ('a', 'b')", Test::In(vec!["a".into(), "b".into()], false)),
        ("dataset.context IN ('train')", Test::In(vec!["train".into()], true)),
        ("metrics.a>=1", Test::Number(Op::Ge, Number::Integer(1))),
        ("metrics.a<-1", Test::Number(Op::Lt, Number::Integer(-1))),
        ("metrics.a <= .5", Test::Number(Op::Le, Number::Real(0.5))),
        ("metrics.a > 1.", Test::Number(Op::Gt, Number::Real(1.0))),
        ("metrics.a = 1e-3", Test::Number(Op::Eq, Number::Real(0.001))),
        ("metrics.a != -1.5E3", Test::Number(Op::Ne, Number::Real(-1500.0))),
        ("start_time > 99999999999999999999", Test::Number(Op::Gt, Number::Real(1e20))),
    ] {
        assert_eq!(one(text).test, test, "{text}");
    }
}

#[test]
fn clauses_are_joined_by_and() {
    assert!(clauses("").is_empty());
    assert!(clauses(" \n\t ").is_empty());
    assert_eq!(clauses("params.a='x'AND params.b='y'\n and\tmetrics.c>1").len(), 3);
    assert_eq!(clauses("params.x IS NULL AND params.y IS NOT NULL and run_id IN ('a') AND metrics.z<1").len(), 4);
}

#[test]
fn refusals_say_what_is_wrong() {
    for (text, message) in [
        ("params.a = 'x' OR params.b = 'y'", "Invalid clause(s) in filter string: 'OR'"),
        ("(params.a = 'x')", "Invalid clause(s) in filter string: '('"),
        ("params.a = 'x';", "Invalid clause(s) in filter string: ';'"),
        ("params.a = 'x'; DROP TABLE runs", "Invalid clause(s) in filter string"),
        ("params.a = 'x' AND", "Invalid clause(s) in filter string"),
        ("AND params.a = 'x'", "Invalid attribute key 'AND'"),
        ("params.a", "Invalid clause(s) in filter string"),
        ("params.a =", "Expected a quoted string value for params"),
        ("params.a 'x'", "Invalid clause(s) in filter string: ''x''"),
        ("params.a = 5", "Expected a quoted string value for params (e.g. 'my-value'). Got value 5"),
        ("params.a = abc", "Parameter value is either not quoted or unidentified quote types used for string value abc"),
        ("params.a = `abc`", "Parameter value is either not quoted"),
        ("params.a = 'abc", "is not closed"),
        ("params.a > 'x'", "Invalid comparator '>' not one of"),
        ("params.a == 'x'", "Invalid comparator '==' not one of"),
        ("params.a <> 'x'", "Invalid comparator '<>' not one of"),
        ("metrics.a = 'x'", "Expected numeric value type for metrics. Found 'x'"),
        ("metrics.a = x", "Expected numeric value type for metrics. Found x"),
        ("metrics.a LIKE 'x'", "Invalid comparator 'LIKE' not one of"),
        ("metrics.a IS NULL", "IS NULL / IS NOT NULL is only supported for tags and params"),
        ("start_time = '5'", "Expected numeric value type for attribute"),
        ("start_time > 5x", "Invalid clause(s) in filter string: '5x'"),
        ("metrics.a-b > 1", "Invalid clause(s) in filter string"),
        ("metrics. > 1", "Invalid clause(s) in filter string"),
        (".a > 1", "Invalid clause(s) in filter string"),
        ("models.a = 'x'", "Invalid entity type 'models'. Valid values are ['metric', "),
        ("colour = 'x'", "Invalid attribute key 'colour' specified. Valid keys are '['run_id', "),
        ("dataset.colour = 'x'", "Invalid dataset key 'colour' specified"),
        ("run_id IN ()", "expected a non-empty list of string values"),
        ("run_id IN ('a' 'b')", "ill-formed list"),
        ("run_id IN ('a', 5)", "ill-formed list"),
        ("run_id IN 'a'", "ill-formed list"),
        ("run_id IN ('a'", "ill-formed list"),
        ("run_id NOT 'a'", "Invalid clause(s) in filter string: ''a''"),
        ("run_name IN ('a')", "Only ['run_id'] attributes support comparison with a list of quoted string values."),
        ("5 = metrics.a", "Invalid clause(s) in filter string: '5'"),
    ] {
        let found = refused(text);
        assert!(found.contains(message), "{text}: {found}");
    }
}

#[test]
fn what_is_given_is_bounded() {
    let long = format!("params.a = '{}'", "x".repeat(FILTER_BYTES_MAX));
    assert!(refused(&long).contains("longer than"));
    let many = vec!["params.a = 'x'"; CLAUSES_MAX + 1].join(" AND ");
    assert!(refused(&many).contains("more than 128 comparisons"));
    assert_eq!(clauses(&vec!["params.a = 'x'"; CLAUSES_MAX].join(" AND ")).len(), CLAUSES_MAX);
    let list = format!("run_id IN ({})", vec!["'a'"; LIST_ITEMS_MAX + 1].join(","));
    assert!(refused(&list).contains("more than 2000 texts"));
    let quotes = "'".repeat(FILTER_BYTES_MAX);
    let _ = refused(&quotes);
    let backslashes = format!("params.a = '{}", "\\'".repeat(20_000));
    let _ = parse(&RUNS, &backslashes);
    assert!(order(&RUNS, &vec!["metrics.a".to_owned(); ORDER_ITEMS_MAX + 1]).is_err());
    assert!(refused(&format!("params.a LIKE '%{}%'", "_".repeat(WILD_CHARS_MAX + 1))).contains("at most 256 characters"));
    assert!(!one(&format!("params.a LIKE '%{}%'", "x".repeat(WILD_CHARS_MAX + 1))).is_costly());
    assert!(one(&format!("params.a LIKE '%{}%'", "_".repeat(WILD_CHARS_MAX))).is_costly());
}

/// As MLflow's, which looks with Python's `re.search`, but for what makes a reader go back.
#[test]
fn regular_expressions_are_found_anywhere_and_bounded() {
    for (expression, text, found) in [
        ("^ab.*z$", "abcz", true),
        ("b.z", "abcz", true),
        ("^b", "ab", false),
        ("(?i)AB", "ab", true),
        ("ä+", "xää", true),
        ("^.$", "🦀", true),
        ("", "anything", true),
        ("a{2}", "a a", false),
    ] {
        assert_eq!(Expression::new(expression).unwrap().0.is_match(text), found, "{expression}");
    }
    for (bad, says) in [
        ("(", "Invalid regular expression '('"),
        ("(?=a)b", "no look-arounds"),
        (r"(a)\1", "no backreferences"),
        (r"\w{1000}{1000}", "is too large"),
        (&"(".repeat(60), "Invalid regular expression"),
        (&"a".repeat(EXPRESSION_BYTES_MAX + 1), "at most 1024 bytes"),
    ] {
        let message = Expression::new(bad).unwrap_err().to_string();
        assert!(message.contains(says), "{bad}: {message}");
    }
    // What takes a reader that goes back longer than the universe has.
    let evil = Expression::new("^(a+)+$").unwrap();
    assert!(!evil.0.is_match(&format!("{}b", "a".repeat(100_000))));
    assert!(refused("params.a RLIKE 'x'").contains("Invalid comparator 'RLIKE'"), "runs have none");
}

/// Every beginning of good filters, with characters of two and four bytes, is taken or refused, and nothing else.
#[test]
fn no_text_breaks_the_parser() {
    let good = "metrics.`ä b` >= -1.5e-3 AND tags.\"🦀\" ILIKE '%ß_\\' and run_id NOT IN ('é', \"b\",) AND params.x IS NOT NULL";
    for (at, _) in good.char_indices() {
        let _ = parse(&RUNS, &good[..at]);
        let _ = parse(&RUNS, &good[at..]);
        let _ = order(&RUNS, &[good[..at].to_owned()]);
    }
}

#[test]
fn patterns_are_sqls() {
    for (text, pattern, like, ilike) in [
        ("abc", "abc", true, true),
        ("abc", "ABC", false, true),
        ("abc", "a%", true, true),
        ("abc", "%c", true, true),
        ("abc", "%b%", true, true),
        ("abc", "%", true, true),
        ("", "%", true, true),
        ("", "", true, true),
        ("a", "", false, false),
        ("abc", "a_c", true, true),
        ("abc", "___", true, true),
        ("abc", "____", false, false),
        ("abc", "%_c", true, true),
        ("c", "%_c", false, false),
        ("abcabc", "a%c", true, true),
        ("abcabd", "a%c", false, false),
        ("aXbXc", "a%b%c", true, true),
        ("ab", "a%b%b", false, false),
        ("abab", "ab%ab", true, true),
        ("aba", "ab%ba", false, false),
        ("a.c", "a.c", true, true),
        ("abc", "a.c", false, false),
        ("100%", "100%", true, true),
        ("line\nbreak", "line%break", true, true),
        ("line\nbreak", "line_break", true, true),
        ("größe", "gr_e", false, false),
        ("größe", "gr__e", true, true),
        ("größe", "gr_ß_", true, true),
        ("GRÖSSE", "gr%e", false, true),
        ("🦀🦀", "_🦀", true, true),
        ("xaay", "%a_y%", true, true),
        ("xaaay", "%a_y%", true, true),
    ] {
        assert_eq!(Pattern::new(pattern, false).unwrap().matches(text), like, "{text} LIKE {pattern}");
        assert_eq!(Pattern::new(pattern, true).unwrap().matches(text), ilike, "{text} ILIKE {pattern}");
    }
}

/// The same answers as a matcher that tries everything.
#[test]
fn patterns_agree_with_a_slow_matcher() {
    fn slow(text: &[char], pattern: &[char]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some(('%', rest)) => (0..=text.len()).any(|at| slow(&text[at..], rest)),
            Some((c, rest)) => text.first().is_some_and(|first| *c == '_' || c == first) && slow(&text[1..], rest),
        }
    }
    let words = |alphabet: &[char], length: usize| -> Vec<Vec<char>> {
        let mut words = vec![Vec::new()];
        let mut all = words.clone();
        for _ in 0..length {
            words = words.iter().flat_map(|word| alphabet.iter().map(move |c| [word.as_slice(), &[*c]].concat())).collect();
            all.extend(words.iter().cloned());
        }
        all
    };
    let texts = words(&['a', 'ß'], 5);
    for pattern in words(&['a', 'ß', '%', '_'], 4) {
        let compiled = Pattern::new(&pattern.iter().collect::<String>(), false).unwrap();
        for text in &texts {
            let written: String = text.iter().collect();
            assert_eq!(compiled.matches(&written), slow(text, &pattern), "{written} LIKE {pattern:?}");
        }
    }
}

#[test]
fn what_is_absent_passes_is_null_alone() {
    let null = one("params.a IS NULL").test;
    assert!(null.text(None) && !null.text(Some("")));
    for text in ["params.a IS NOT NULL", "params.a = 'x'", "params.a != 'x'", "params.a LIKE '%'", "dataset.name NOT IN ('x')"] {
        assert!(!one(text).test.text(None), "{text}");
    }
    assert!(one("params.a != 'x'").test.text(Some("y")));
    assert!(!one("metrics.a != 1").test.real(None));
    assert!(!one("metrics.a != 1").test.text(Some("2")), "a text is no number");
}

#[test]
fn numbers_compare_exactly() {
    let big = i64::MAX - 1;
    let test = |text: &str| one(text).test;
    assert!(test(&format!("start_time < {}", i64::MAX)).integer(Some(big)), "one apart, and the same as a float");
    assert!(!test(&format!("start_time = {}", i64::MAX)).integer(Some(big)));
    assert!(test("start_time > 1.5").integer(Some(2)) && !test("start_time > 1.5").integer(Some(1)));
    for (text, passes) in [("= 1", false), ("!= 1", true), ("< 1", false), (">= 1", false), ("> -1e308", false)] {
        assert_eq!(test(&format!("metrics.a {text}")).real(Some(f64::NAN)), passes, "NaN {text}");
    }
    assert!(test("metrics.a > 1e308").real(Some(f64::INFINITY)) && test("metrics.a < -1e308").real(Some(f64::NEG_INFINITY)));
    assert!(test("metrics.a = 0").real(Some(-0.0)));
}

#[test]
fn orders() {
    let read = |text: &str| order(&RUNS, &[text.to_owned()]).map(|mut orders| orders.remove(0)).map_err(|error| error.to_string());
    for (text, entity, key, ascending) in [
        ("metrics.loss", Entity::Metric, "loss", true),
        ("metrics.loss ASC", Entity::Metric, "loss", true),
        ("metrics.loss desc", Entity::Metric, "loss", false),
        ("metrics.`val loss` DESC", Entity::Metric, "val loss", false),
        ("params.\"a b\" asc", Entity::Param, "a b", true),
        ("attribute.start_time DESC", Entity::Attribute, "start_time", false),
        ("start_time DESC", Entity::Attribute, "start_time", false),
        ("created", Entity::Attribute, "start_time", true),
        ("tags.a.b DESC", Entity::Tag, "a.b", false),
    ] {
        assert_eq!(read(text).unwrap(), Order { entity, key: key.to_owned(), ascending }, "{text}");
    }
    for (text, message) in [
        ("", "Could not be parsed"),
        ("metrics.loss DESC DESC", "Could not be parsed"),
        ("metrics.loss up", "Invalid ordering key in order_by clause"),
        ("run_name", "Invalid attribute key 'run_name' specified"),
        ("colour", "Invalid attribute key 'colour' specified"),
        ("dataset.name", "Invalid order_by entity: 'dataset'"),
        ("models.x", "Invalid entity type 'models'"),
        ("'loss'", "Could not be parsed"),
    ] {
        let found = read(text).unwrap_err();
        assert!(found.contains(message), "{text}: {found}");
    }
    let twice = ["start_time".to_owned(), "created DESC".to_owned()];
    assert!(order(&RUNS, &twice).unwrap_err().to_string().contains("duplicate fields"));
}
