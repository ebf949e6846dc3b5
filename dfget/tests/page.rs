//! `docs/dfget.md` holds the tables that the program prints.

/// Writes the tables into the page instead of comparing them.
const REWRITE: &str = "DFGET_REWRITE_DOCS";

#[test]
fn the_page_has_the_tables_of_the_program() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/dfget.md");
    let page = std::fs::read_to_string(path).unwrap();
    let block = dfget::flags::block();
    let (first, last) = (block.lines().next().unwrap(), block.lines().last().unwrap());
    let begin = page.find(first).expect("the mark before the tables");
    let end = page.find(last).expect("the mark behind the tables") + last.len();
    if page[begin..end] != block {
        if std::env::var_os(REWRITE).is_some() {
            std::fs::write(path, format!("{}{block}{}", &page[..begin], &page[end..])).unwrap();
            return;
        }
        panic!("docs/dfget.md is out of date; {REWRITE}=1 cargo test -p dfget page writes it anew");
    }
}
