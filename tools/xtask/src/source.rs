//! Just enough of Rust's lexis to count lines: code and comments apart, strings and characters blanked.

/// A file's text twice, line for line: its code, and its comments.
pub(crate) struct Source {
    pub(crate) code: String,
    pub(crate) comments: String,
}

/// A word or a single punctuation character, and its line from 1.
pub(crate) struct Word<'a> {
    pub(crate) line: usize,
    pub(crate) text: &'a str,
}

/// A function with a body.
pub(crate) struct Function<'a> {
    pub(crate) name: &'a str,
    pub(crate) line: usize,
    pub(crate) lines: usize,
}

/// Splits `text`.
pub(crate) fn strip(text: &str) -> Source {
    let mut source = Source { code: String::new(), comments: String::new() };
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let (length, kind) = token(rest, source.code.chars().next_back());
        let (token, after) = rest.split_at(length.max(next.len_utf8()));
        let newlines = "\n".repeat(token.matches('\n').count());
        let (code, comment) = match kind {
            Kind::Code => (token, newlines.as_str()),
            Kind::Comment => (newlines.as_str(), token),
            Kind::Literal => (newlines.as_str(), newlines.as_str()),
        };
        source.code.push_str(code);
        source.comments.push_str(comment);
        rest = after;
    }
    source
}

enum Kind {
    Code,
    Comment,
    Literal,
}

/// The length in bytes and the kind of what `rest` starts with.
fn token(rest: &str, before: Option<char>) -> (usize, Kind) {
    if rest.starts_with("//") {
        return (rest.find('\n').unwrap_or(rest.len()), Kind::Comment);
    }
    if rest.starts_with("/*") {
        return (block_comment(rest), Kind::Comment);
    }
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if !in_word && let Some(length) = raw_string(rest) {
        return (length, Kind::Literal);
    }
    if rest.starts_with('"') {
        return (quoted(rest, '"'), Kind::Literal);
    }
    if let Some(after) = rest.strip_prefix('\'') {
        let mut chars = after.chars();
        let is_char = matches!((chars.next(), chars.next()), (Some('\\'), _) | (_, Some('\'')));
        return if is_char { (quoted(rest, '\''), Kind::Literal) } else { (1, Kind::Code) };
    }
    (rest.chars().next().map_or(1, char::len_utf8), Kind::Code)
}

fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(tail) = rest.get(at..) {
        if tail.starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if tail.starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
        } else if let Some(c) = tail.chars().next() {
            at += c.len_utf8();
        } else {
            break;
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

fn raw_string(rest: &str) -> Option<usize> {
    let prefix = ["br", "cr", "r"].into_iter().find(|prefix| rest.starts_with(prefix))?;
    let after = rest.strip_prefix(prefix)?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    let body = after.get(hashes..)?.strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let length = body.find(&end).map_or(body.len(), |at| at + end.len());
    Some(prefix.len() + hashes + 1 + length)
}

/// The words of stripped text.
pub(crate) fn words(text: &str) -> Vec<Word<'_>> {
    let mut words = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let mut rest = line.trim_start();
        while let Some(first) = rest.chars().next() {
            let is_word = |c: char| c.is_alphanumeric() || c == '_';
            let length = if is_word(first) {
                rest.find(|c| !is_word(c)).unwrap_or(rest.len())
            } else {
                first.len_utf8()
            };
            let (text, after) = rest.split_at(length);
            words.push(Word { line: number + 1, text });
            rest = after.trim_start();
        }
    }
    words
}

/// The functions among `words`, in the order in which they end.
pub(crate) fn functions<'a>(words: &[Word<'a>]) -> Vec<Function<'a>> {
    let mut found = Vec::new();
    let mut depth = 0_usize;
    let mut brackets = 0_usize;
    let mut announced: Option<(&Word<'a>, usize)> = None;
    let mut open: Vec<(&Word<'a>, usize)> = Vec::new();
    for pair in words.windows(2) {
        let [word, next] = pair else { continue };
        match word.text {
            "fn" if next.text.starts_with(|c: char| c.is_alphabetic() || c == '_') => {
                announced = Some((next, brackets));
            }
            "(" | "[" => brackets += 1,
            ")" | "]" => brackets = brackets.saturating_sub(1),
            // A declaration without a body; a `;` inside brackets is an array's.
            ";" if announced.is_some_and(|(_, outer)| outer == brackets) => announced = None,
            "{" => {
                if let Some((name, _)) = announced.take() {
                    open.push((name, depth));
                }
                depth += 1;
            }
            "}" => depth = close(word, depth, &mut open, &mut found),
            _ => {}
        }
    }
    if let Some(last) = words.last()
        && last.text == "}"
    {
        close(last, depth, &mut open, &mut found);
    }
    found
}

fn close<'a>(
    brace: &Word<'_>,
    depth: usize,
    open: &mut Vec<(&Word<'a>, usize)>,
    found: &mut Vec<Function<'a>>,
) -> usize {
    let depth = depth.saturating_sub(1);
    if let Some((name, _)) = open.pop_if(|(_, outer)| *outer == depth) {
        found.push(Function { name: name.text, line: name.line, lines: brace.line - name.line + 1 });
    }
    depth
}

#[cfg(test)]
mod tests {
    use super::{functions, strip, words};

    #[test]
    fn strings_and_comments_do_not_count() {
        let text = "fn a<'x>(b: [u8; 2]) {\n  r#\"} \"# ; '\\'' ; '}' ; \"\\\"}\"; // }\n /* } /* } */ } */\n}\nfn c();\nfn d() {}\n";
        let source = strip(text);
        assert_eq!(source.code.lines().count(), source.comments.lines().count());
        let words = words(&source.code);
        let found: Vec<_> = functions(&words).into_iter().map(|f| (f.name, f.line, f.lines)).collect();
        assert_eq!(found, [("a", 1, 4), ("d", 6, 1)]);
    }

    #[test]
    fn a_function_inside_a_function_is_counted_by_itself() {
        let words = words("fn outer() {\n let f: fn(u8);\n fn inner() {\n }\n}\n");
        let found: Vec<_> = functions(&words).into_iter().map(|f| (f.name, f.lines)).collect();
        assert_eq!(found, [("inner", 2), ("outer", 5)]);
    }
}
