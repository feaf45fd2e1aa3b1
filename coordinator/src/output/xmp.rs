//! XMP: a picture's texts as the XML that photo programs read.
//!
//! The prompt is `dc:description`, the program `xmp:CreatorTool`, and the settings stand in a namespace of
//! their own. Nothing else is written: no date, no identifiers.

use roxmltree::{Document, Node};

use crate::output::Embedded;

const DC: &str = "http://purl.org/dc/elements/1.1/";
const XMP: &str = "http://ns.adobe.com/xap/1.0/";
/// Written into pictures: it must never change.
const OWN: &str = "urn:gigasmith:1#";

/// The packet for these texts.
pub(crate) fn packet(embedded: &Embedded) -> String {
    format!(
        "<?xpacket begin=\"\u{feff}\" id=\"W5M0MpCehiHzreSzNTczkc9d\"?>\n\
         <x:xmpmeta xmlns:x=\"adobe:ns:meta/\">\n\
         <rdf:RDF xmlns:rdf=\"http://www.w3.org/1999/02/22-rdf-syntax-ns#\">\n\
         <rdf:Description rdf:about=\"\" xmlns:dc=\"{DC}\" xmlns:xmp=\"{XMP}\" xmlns:gigasmith=\"{OWN}\">\n\
         <dc:description><rdf:Alt><rdf:li xml:lang=\"x-default\">{}</rdf:li></rdf:Alt></dc:description>\n\
         <xmp:CreatorTool>{}</xmp:CreatorTool>\n\
         <gigasmith:settings>{}</gigasmith:settings>\n\
         </rdf:Description>\n\
         </rdf:RDF>\n\
         </x:xmpmeta>\n\
         <?xpacket end=\"r\"?>",
        escaped(&embedded.parameters, |_| "\u{fffd}".into()),
        escaped(&embedded.software, |_| "\u{fffd}".into()),
        // Inside JSON such a character can only stand in a string, where its escape means the same.
        escaped(&embedded.json, |c| format!("\\u{:04x}", u32::from(c))),
    )
}

/// As XML text. What XML cannot hold in any form goes through `replace`.
fn escaped(text: &str, replace: impl Fn(char) -> String) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 8);
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            // Readers turn a bare one into a newline.
            '\r' => out.push_str("&#13;"),
            '\t' | '\n' => out.push(c),
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => out.push_str(&replace(c)),
            _ => out.push(c),
        }
    }
    out
}

/// The parameters and the settings' JSON of a packet; `None` where it has none, or is no XML.
pub(crate) fn read(packet: &[u8]) -> (Option<String>, Option<String>) {
    let text = String::from_utf8_lossy(packet);
    let text = text.trim_end_matches('\0');
    let Ok(document) = Document::parse(text) else { return (None, None) };
    let content = |namespace: &str, name: &str| {
        let node = document.descendants().find(|n| n.has_tag_name((namespace, name)))?;
        let text: String = match node.descendants().find(|n| n.tag_name().name() == "li") {
            Some(first) => texts(first),
            None => texts(node),
        };
        Some(text).filter(|t| !t.is_empty())
    };
    (content(DC, "description"), content(OWN, "settings"))
}

fn texts(node: Node<'_, '_>) -> String {
    node.descendants().filter(Node::is_text).filter_map(|n| n.text()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::testing::embedded;

    #[test]
    fn texts_come_back_in_any_alphabet() {
        let written = embedded();
        let (parameters, json) = read(packet(&written).as_bytes());
        assert_eq!(parameters.unwrap(), written.parameters);
        assert_eq!(json.unwrap(), written.json);
    }

    #[test]
    fn what_xml_cannot_hold_is_replaced_and_json_keeps_its_meaning() {
        let json = "{\"a\":\"x\u{ffff}y\"}".to_owned();
        let written = Embedded { parameters: "a\0b\u{1b}c".into(), json, software: String::new() };
        let (parameters, json) = read(packet(&written).as_bytes());
        assert_eq!(parameters.unwrap(), "a\u{fffd}b\u{fffd}c");
        let parse = |json: &str| serde_json::from_str::<serde_json::Value>(json).unwrap();
        assert_eq!(parse(&json.unwrap()), parse(&written.json));
    }

    #[test]
    fn foreign_packets_are_no_error() {
        assert_eq!(read(b"<a><b/></a>"), (None, None));
        assert_eq!(read(b"no xml \xff"), (None, None));
    }
}
