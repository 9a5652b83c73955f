//! Words of captions, as coco-caption's scores read them: tokens of Stanford's `PTBTokenizer`
//! (CoreNLP 3.4.1, `-preserveLines -lowerCase`) without punctuation.
//!
//! The rules were found by comparing tokens with the program's.

use regex_automata::hybrid::BuildError;
use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::{Anchored, Input, MatchKind};

/// Tokens that coco-caption removes. Brackets stay: its list has `-LRB-`, but tokens are in lower
/// case when it is read.
const PUNCTUATION: [&str; 13] =
    ["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"];

/// Space inside a token: `1 1/2` is one token.
const NO_BREAK_SPACE: &str = "\u{a0}";

/// Text of the token that a rule finds. Characters of the match after the token are scanned again.
#[derive(Debug, Clone, Copy)]
enum Token {
    /// The whole match.
    Whole,
    /// The match without its last characters.
    Before(usize),
    /// The first characters of the match.
    First(usize),
    /// The match up to its first full stop.
    ToPoint,
    /// The match without its last characters, with ASCII quotes.
    Ascii(usize),
    /// A text that stands for the match.
    As(&'static str),
    /// No token.
    Nothing,
    /// No token, but the end of a caption.
    Line,
}

use Token::{As, Ascii, Before, First, Line, Nothing, ToPoint, Whole};

/// Parts of [`RULES`], with the names that stand for them there. Later parts may stand in earlier
/// ones.
const PARTS: [(&str, &str); 13] = [
    ("<word>", "<letter>(?:<letter>|<digit>)*(?:[.!?]<letter>(?:<letter>|<digit>)*)*"),
    ("<hyphenated>", r"<run>(?:[-_\u2010\u2011]<run>)*"),
    ("<run>", r"(?:[dDoOlL]<quote>[\p{L}<digit>])?[\p{L}<digit>]+"),
    ("<number>", "(?:<digit>+|<digit>*(?:[.:,]<digit>+)+)"),
    ("<slashed>", "[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"),
    ("<letter>", r"[\p{L}\p{M}]"),
    ("<digit>", r"\p{Nd}"),
    ("<apostrophe>", r"['\u2019]"),
    ("<quote>", r"['`\u2018\u2019\u201b]"),
    ("<title>", TITLES),
    ("<abbreviation>", ABBREVIATIONS),
    ("<start>", STARTS),
    ("<file>", FILES),
];

/// Abbreviations that stand before a name or a number.
const TITLES: &str = "adj|adm|adv|alex|assoc|asst|atty|ave|brig|capt|cf|cie|cmdr|col|comdr|cpl|\
    dept|det|drs?|elec|ens|ft|gen|govs?|hon|insp|invt|jos|lieut|lt|maj|messrs|mfg|mlle|mme|mrs?|\
    ms|msgr|mt|mtg|natl|pfc|ph|pres|prof|pvt|reps?|rev|sens?|sfc|sgt|spc|ste?|supt|treas|vs|wm";

/// Abbreviations that can end a sentence, in any case.
const ABBREVIATIONS: &str = "ala?|apr|ariz|assn|aug|bhd|bldg|blvd|bros|calif|cos?|colo|conn|corp|\
    ct|dak|dec|esq|est|etc|ext|feb|fla|fri|ga|inc|ind|intl|jan|jr|jul|jun|kans?|ky|ltd|mar|md|\
    mich|minn|mo|mont?|neb|nev|nov|oct|okla|penn|plc|ppt[ey]|ptes?|ptys?|rd|rt|sept?|seq|sq|sr|\
    sys|tel|tenn|thu|thurs|tue|tues|univ|va|vt|wed|wisc?|wyo|ph\\.d|ed\\.d";

/// Words that start a sentence, so that the letter before them has no full stop of its own.
const STARTS: &str = "A|About|According|Additionally|After|An|As|At|But|He|Her|Here|However|If|In|\
    It|Last|Many|More|Now|Once|One|Other|Our|She|Since|So|Some|Such|That|The|Their|Then|There|\
    These|They|This|We|What|When|While|Yet|You|Mr\\.|Ms\\.";

/// Extensions of names of files.
const FILES: &str = "bat|bmp|class|cgi|cpp|dll|docx?|exe|gif|gz|html?|jar|java|jpe?g|mov|mp3|\
    pdf|php|pl|png|ppt|ps|py|sql|tar|txt|wav|xml|zip";

/// Rules of tokens. The longest match of all rules counts, and the first rule with this match.
const RULES: [(&str, Token); 77] = [
    (r"\n", Line),
    (r"[\s--\n]+|&nbsp;", Nothing),
    // Abbreviations.
    (r"(?i)(?:<title>)\.", Whole),
    (r"(?i)(?:<abbreviation>)\.(?s:.)", Before(1)),
    (r"(?:Ark|Az|Del|Ill|La|Mass|Miss|Ore|Pa|Tex|Wash)\.(?s:.)", Before(1)),
    (r"(?:ARK|AZ|DEL|ILL|LA|MASS|MISS|ORE|PA|TEX|WASH)\.(?s:.)", Before(1)),
    (r"(?i)(?:art|ca|figs?|nos?|op|pp|prop)\.\s?\d", ToPoint),
    (r"[A-Za-z]\.\s+(?:<start>)\s", First(1)),
    (r"[A-Za-z]\.\s+(?:A|AS|AT|BUT|HE|IF|IN|IT|SHE|SO|THE|THEY|THIS|WE|YOU|MR\.|MS\.)\s", First(1)),
    (r"[A-Za-z]\.|<letter>(?:\.<letter>)+\.", Whole),
    // Contractions.
    ("(?i)cannot|gonna|gotta|wanna|lemme|gimme", First(3)),
    ("(?i)'tis|'twas", First(2)),
    ("(?i)[a-z]+n<quote>t", Before(3)),
    ("(?i)n<quote>t", Ascii(0)),
    ("(?i)<word><apostrophe>[smd]", Before(2)),
    ("(?i)<word><apostrophe>(?:re|ve|ll)", Before(3)),
    ("(?i)<apostrophe>(?:s|m|d|re|ve|ll)[^A-Za-z]", Ascii(1)),
    (r"(?i)\u2019(?:s|m|d|re|ve|ll)", Ascii(0)),
    (r"(?i)<apostrophe>n\s|<apostrophe>\d\d\s", Before(1)),
    (r"(?i)\u2019n|<apostrophe>(?:n<apostrophe>|em|till?|cause|[2-9]0s)", Whole),
    ("(?i)(?:[ldj]|ol|dunkin|somethin)<apostrophe>", Whole),
    (r"(?i)y<apostrophe>\p{L}", Before(1)),
    (r"[A-HJ-XZn]<quote>\p{L}{2,}|\p{L}+[aeiouyAEIOUY]<quote>[aeiouA-Z]\p{L}*", Whole),
    ("(?i)e'er|c'mon|s'mores|ev'ry|li'l|nat'l|nor'easter", Whole),
    // Words.
    ("<word>|<hyphenated>", Whole),
    (r"(?:<word>|<hyphenated>)\.[,;:]", Before(1)),
    ("[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+", Whole),
    (r"<slashed>(?:\\?/<slashed>){1,2}", Whole),
    (r"[A-Za-z0-9][A-Za-z0-9.,]*(?:-(?:[A-Za-z0-9]+|[A-Za-z](?:\.[A-Za-z])+\.))+", Whole),
    (r"(?i)c\+\+|[cf]#", Whole),
    // Numbers.
    ("[-+]?<number>", Whole),
    (r"(?:<digit>{1,4}[- \u00a0])?<digit>{1,4}(?:\\?/|\u2044)<digit>{1,4}", Whole),
    (r"\u00bc", As("1/4")),
    (r"\u00bd", As("1/2")),
    (r"\u00be", As("3/4")),
    (r"\u2153", As("1/3")),
    (r"\u2154", As("2/3")),
    (r"[A-Z]*\$|#", Whole),
    (r"[\u207a\u207b]?[\u00b2\u00b3\u00b9\u2070-\u2079]+", Whole),
    (r"\u00a2", As("cents")),
    (r"\u00a3", As("#")),
    (r"[\u00a4\u20a0\u20ac]", As("$")),
    (r"(?:\(\d{2,3}\) ?|(?:\+\+?)?(?:\d{2,4}[- ])?\d{2,4}[- ])\d{3,4}[- ]?\d{3,5}", Whole),
    // Addresses, files and markup.
    (r#"https?://[^\s"<>|(){}]+[^\s"<>|.!?(){},-]"#, Whole),
    (r#"www\.(?:[^\s"<>|.!?(){},]+\.)+[a-zA-Z]{2,4}"#, Whole),
    (r#"www\.(?:[^\s"<>|.!?(){},]+\.)+[a-zA-Z]{2,4}/[^\s"<>|()]+[^\s"<>|.!?(){},-]"#, Whole),
    (r#"(?:[^\s"`'<>|.!?(){},_$-]+\.)+(?:com|net|org|edu)"#, Whole),
    (r#"(?:[^\s"`'<>|.!?(){},_$-]+\.)+(?:com|net|org|edu)/[^\s"<>|()]+[^\s"<>|.!?(){},-]"#, Whole),
    (r#"[a-zA-Z0-9][^\s"<>|(){}]*@(?:[^\s"<>|(){}.]+\.)*[^\s"<>|(){}.]+"#, Whole),
    (r"@[A-Za-z_][A-Za-z_0-9]*|#\p{L}+", Whole),
    (r"(?i)[\p{L}<digit>]+(?:\.[\p{L}<digit>]+)*\.(?:<file>)[\s.,?!]", Before(1)),
    (r"</?[A-Za-z][A-Za-z0-9:._-]*(?: +[A-Za-z][A-Za-z0-9:._-]*)* */?>", Whole),
    (r#"<[A-Za-z][A-Za-z0-9:._-]*(?: +[A-Za-z][A-Za-z0-9:._-]*="[^"]*")+ */?>"#, Whole),
    (r"<[!?][A-Za-z-][^>\r\n]*>", Whole),
    (r"&amp;", As("&")),
    (r"&lt;", As("<")),
    (r"&gt;", As(">")),
    // Brackets and punctuation.
    (r"(?i)-(?:[lr][rcs]b)-", Whole),
    (r"\(", As("-lrb-")),
    (r"\)", As("-rrb-")),
    (r"\[", As("-lsb-")),
    (r"\]", As("-rsb-")),
    (r"\{", As("-lcb-")),
    (r"\}", As("-rcb-")),
    (r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]][^A-Za-z0-9]", Before(1)),
    ("[-^x=~<>']_[-^x=~<>']", Whole),
    (r#""|&quot;|``|''"#, As("''")),
    (r"[`\u2018\u2019\u201b\u2039\u203a\u201c\u201d\u00ab\u00bb]{1,2}", Ascii(0)),
    ("&apos;", As("'")),
    (r"-{2,4}|[\u2013\u2014\u2015]", As("--")),
    ("-{5,}", Whole),
    (r"\.{3,}|\u2026|\. \. \.", As("...")),
    (r"[?!]+|_+|\*+|@+|##+", Whole),
    (r"<<|>>|&#[0-9]+;", Whole),
    // Other characters are tokens; those that CoreNLP does not know, such as emojis, are removed.
    (r"[!-~\u00a1-\u00ac\u00ae-\u1fff]", Whole),
    (r"[\u2016-\u2023\u2030-\u2bff\u3001\u3002\uff01-\uff65]", Whole),
    ("(?s:.)", Nothing),
];

/// Reads the words of captions.
#[derive(Debug)]
pub struct Tokenizer {
    rules: DFA,
    states: Cache,
}

impl Tokenizer {
    /// Compiles the rules.
    ///
    /// # Errors
    /// Fails if a rule is no regular expression, which would be a mistake of this file.
    pub fn new() -> Result<Self, Box<BuildError>> {
        let expanded = |rule: &str| {
            let insert = |rule: String, (name, part): (&str, &str)| rule.replace(name, part);
            PARTS.into_iter().fold(rule.to_owned(), insert)
        };
        let rules: Vec<String> = RULES.iter().map(|(rule, _)| expanded(rule)).collect();
        let longest = DFA::config().match_kind(MatchKind::All);
        let rules = DFA::builder().configure(longest).build_many(&rules)?;
        let states = rules.create_cache();
        Ok(Self { rules, states })
    }

    /// Returns the words of captions, in lower case and separated by spaces, as coco-caption's
    /// `PTBTokenizer.tokenize` does. A word may hold a no-break space.
    ///
    /// As there, the captions are the lines of one text. The beginning of the next caption decides
    /// whether a caption that ends in `no.` or in `plan b.` keeps this full stop.
    #[must_use]
    pub fn words(&mut self, captions: &[&str]) -> Vec<String> {
        let line = |caption: &&str| caption.replace(['\r', '\n'], " ") + "\n";
        let text: String = captions.iter().map(line).collect();
        let (mut all, mut words) = (Vec::with_capacity(captions.len()), Vec::new());
        let mut rest = text.as_str();
        while let Some((token, found)) = self.next(rest) {
            let (text, read) = text_of(token, found);
            rest = &rest[read..];
            words.extend(text.filter(|word| !PUNCTUATION.contains(&word.as_str())));
            if matches!(token, Line) {
                all.push(words.join(" "));
                words.clear();
            }
        }
        all
    }

    /// Longest match at the beginning of a text, and what it becomes. `None` at the end.
    fn next<'a>(&mut self, text: &'a str) -> Option<(Token, &'a str)> {
        let input = Input::new(text).anchored(Anchored::Yes);
        let found = self.rules.try_search_fwd(&mut self.states, &input).ok().flatten()?;
        Some((RULES[found.pattern().as_usize()].1, &text[..found.offset()]))
    }
}

/// Text of a token, and the number of bytes of the match that belong to it.
fn text_of(token: Token, found: &str) -> (Option<String>, usize) {
    let without = |characters: usize| {
        let end = found.char_indices().rev().nth(characters.saturating_sub(1));
        &found[..end.filter(|_| characters > 0).map_or(found.len(), |(at, _)| at)]
    };
    let own = match token {
        Nothing | Line => return (None, found.len()),
        As(text) => return (Some(text.to_owned()), found.len()),
        Ascii(after) => {
            let text = without(after);
            return (Some(ascii_quotes(&text.to_lowercase())), text.len());
        }
        Whole => found,
        Before(after) => without(after),
        First(characters) => {
            let end = found.char_indices().nth(characters);
            &found[..end.map_or(found.len(), |(at, _)| at)]
        }
        ToPoint => &found[..=found.find('.').unwrap_or(found.len() - 1)],
    };
    let text = own.to_lowercase().replace(' ', NO_BREAK_SPACE).replace("&amp;", "&");
    (Some(text.replace('(', "-lrb-").replace(')', "-rrb-")), own.len())
}

fn ascii_quotes(text: &str) -> String {
    let text = text.replace(['\u{2018}', '\u{201b}', '\u{2039}'], "`");
    let text = text.replace(['\u{2019}', '\u{203a}'], "'");
    text.replace(['\u{201c}', '\u{ab}'], "``").replace(['\u{201d}', '\u{bb}'], "''")
}
