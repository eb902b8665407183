//! Blanks out comments and literals of Rust source, so that rules look at code alone.
//!
//! Not a parser: it knows strings, raw strings, characters, lifetimes and nested comments.

/// `text` with every comment and literal replaced by spaces; line breaks stay, so that line
/// numbers hold.
pub(super) fn code_only(text: &str) -> String {
    let source: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < source.len() {
        let end = literal_or_comment_end(&source, at);
        if end == at {
            code.push(source[at]);
            at += 1;
            continue;
        }
        code.extend(source[at..end].iter().map(|&c| if c == '\n' { '\n' } else { ' ' }));
        at = end;
    }
    code
}

/// The words (identifiers and keywords) of `code` with their line, counted from 1.
pub(super) fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    code.lines().enumerate().flat_map(|(index, line)| {
        line.split(|c: char| !c.is_alphanumeric() && c != '_')
            .filter(|word| !word.is_empty())
            .map(move |word| (index + 1, word))
    })
}

/// Where the literal or comment that begins at `at` ends; `at` itself when none begins there.
fn literal_or_comment_end(source: &[char], at: usize) -> usize {
    let next = source.get(at + 1).copied();
    match source[at] {
        '/' if next == Some('/') => find(source, at, |rest| rest[0] == '\n'),
        '/' if next == Some('*') => block_comment_end(source, at),
        '"' => string_end(source, at + 1),
        '\'' => character_end(source, at),
        'r' if !in_word(source, at) => raw_string_end(source, at),
        _ => at,
    }
}

/// A letter directly before means that this one continues a word (`for`, `br` is no word here).
fn in_word(source: &[char], at: usize) -> bool {
    let before = at.checked_sub(1).map(|index| source[index]);
    before.is_some_and(|c| c != 'b' && c != 'c' && (c.is_alphanumeric() || c == '_'))
}

fn find(source: &[char], from: usize, stop: impl Fn(&[char]) -> bool) -> usize {
    (from..source.len()).find(|&index| stop(&source[index..])).unwrap_or(source.len())
}

fn block_comment_end(source: &[char], at: usize) -> usize {
    let (mut depth, mut index) = (0_usize, at);
    while index < source.len() {
        match &source[index..] {
            ['/', '*', ..] => (depth, index) = (depth + 1, index + 2),
            ['*', '/', ..] => (depth, index) = (depth - 1, index + 2),
            _ => index += 1,
        }
        if depth == 0 {
            break;
        }
    }
    index
}

fn string_end(source: &[char], mut index: usize) -> usize {
    while index < source.len() {
        match source[index] {
            '\\' => index += 2,
            '"' => return index + 1,
            _ => index += 1,
        }
    }
    source.len()
}

/// `'a'` and `'\n'` are literals, `'a` is a lifetime.
fn character_end(source: &[char], at: usize) -> usize {
    match &source[at + 1..] {
        ['\\', _, rest @ ..] => match rest.iter().position(|&c| c == '\'') {
            Some(distance) => at + 3 + distance + 1,
            None => source.len(),
        },
        [_, '\'', ..] => at + 3,
        _ => at,
    }
}

fn raw_string_end(source: &[char], at: usize) -> usize {
    let hashes = source[at + 1..].iter().take_while(|&&c| c == '#').count();
    if source.get(at + 1 + hashes) != Some(&'"') {
        return at;
    }
    let body = at + 2 + hashes;
    let closes = |rest: &[char]| {
        rest[0] == '"' && rest.len() > hashes && rest[1..=hashes].iter().all(|&c| c == '#')
    };
    (find(source, body, closes) + 1 + hashes).min(source.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(text: &str) -> String {
        code_only(text).split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn comments_and_literals_vanish_and_code_stays() {
        let cases = [
            ("a // unsafe\nb", "a b"),
            ("a /* x /* unsafe */ y */ b", "a b"),
            ("let s = \"unsafe \\\" {\"; c", "let s = ; c"),
            ("let s = r#\"unsafe \" {\"#; c", "let s = ; c"),
            ("let s = br\"unsafe\"; c", "let s = b ; c"),
            ("fn f<'a>(x: &'a str) -> char { 'u' }", "fn f<'a>(x: &'a str) -> char { }"),
            ("let c = '\\''; let d = '\"'; e", "let c = ; let d = ; e"),
            ("for r in x { r }", "for r in x { r }"),
            ("\"open", ""),
            ("r#\"open", ""),
            ("/* open", ""),
            ("'\\u{41}' a", "a"),
        ];
        for (text, expected) in cases {
            assert_eq!(kept(text), expected, "{text}");
        }
    }

    #[test]
    fn lines_are_kept() {
        let code = code_only("/* one\ntwo */\nunsafe");
        assert_eq!(words(&code).collect::<Vec<_>>(), [(3, "unsafe")]);
    }
}
