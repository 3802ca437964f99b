//! `key=value,key=value` specifications, parsed strictly: every error shows the right form.

use crate::port::PortError;

/// The fields of one specification.
pub(super) struct Fields<'a> {
    spec: &'a str,
    form: &'static str,
    fields: Vec<(&'a str, &'a str)>,
}

impl<'a> Fields<'a> {
    /// Splits `rest`; each key must be one of `known` and may come once.
    pub(super) fn parse(
        spec: &'a str,
        rest: &'a str,
        known: &[&str],
        form: &'static str,
    ) -> Result<Self, PortError> {
        let mut all = Fields { spec, form, fields: Vec::new() };
        for field in rest.split(',').filter(|_| !rest.is_empty()) {
            let Some((key, value)) = field.split_once('=') else {
                return Err(all.error(format!("{field:?} is not KEY=VALUE")));
            };
            if !known.contains(&key) {
                return Err(all.error(format!("there is no option {key:?}")));
            }
            if all.get(key).is_some() {
                return Err(all.error(format!("{key:?} is given twice")));
            }
            if value.is_empty() {
                return Err(all.error(format!("{key:?} has no value")));
            }
            all.fields.push((key, value));
        }
        Ok(all)
    }

    /// The error for this specification, with the right form.
    pub(super) fn error(&self, what: impl Into<String>) -> PortError {
        form_error(self.spec, what, self.form)
    }

    /// A field's text.
    pub(super) fn get(&self, key: &str) -> Option<&'a str> {
        self.fields.iter().find(|field| field.0 == key).map(|field| field.1)
    }

    /// A field's value, when it is there.
    pub(super) fn value<T: std::str::FromStr<Err: std::fmt::Display>>(
        &self,
        key: &str,
    ) -> Result<Option<T>, PortError> {
        let parse = |text: &str| text.parse().map_err(|e: T::Err| self.error(format!("{key}={text}: {e}")));
        self.get(key).map(parse).transpose()
    }

    /// As [`value`](Self::value), for fields that must be there.
    pub(super) fn required<T: std::str::FromStr<Err: std::fmt::Display>>(
        &self,
        key: &str,
    ) -> Result<T, PortError> {
        self.value(key)?.ok_or_else(|| self.error(format!("{key:?} is missing")))
    }
}

/// An error that shows the right form.
pub(super) fn form_error(spec: &str, what: impl Into<String>, form: &str) -> PortError {
    PortError::new(spec, what, format!("write it as {form}"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn wrong_specifications_show_the_right_form() {
        let mac = "02:00:00:00:00:01";
        for (spec, form) in [
            ("null:x".to_owned(), "null:"),
            ("gen:".into(), "gen:len=64,dst=MAC"),
            (format!("gen:dst={mac}"), "gen:len=64"),
            (format!("gen:len=64,dst={mac},"), "gen:len=64"),
            (format!("gen:len=64,dst={mac},dst={mac}"), "gen:len=64"),
            (format!("gen:len=64,dst={mac},rate=1"), "gen:len=64"),
            (format!("gen:len=13,dst={mac}"), "gen:len=64"),
            (format!("gen:len=65536,dst={mac}"), "gen:len=64"),
            (format!("gen:len=64,dst={mac},vlan=4095"), "gen:len=64"),
            ("gen:len=64,dst=nonsense".into(), "gen:len=64"),
            (format!("gen:len=64,dst={mac},src=01:00:5e:00:00:01"), "gen:len=64"),
            ("tap:".into(), "tap:NAME"),
            ("tap:a/b".into(), "tap:NAME"),
            ("tap:longer-than-15-bytes".into(), "tap:NAME"),
            ("pcap:".into(), "pcap:rx=FILE,tx=FILE"),
            ("pcap:in=a".into(), "pcap:rx=FILE,tx=FILE"),
            ("pcap:rx=".into(), "pcap:rx=FILE,tx=FILE"),
        ] {
            let error =
                super::super::open(&spec).unwrap().err().unwrap_or_else(|| panic!("{spec} was taken"));
            let text = error.to_string();
            assert!(text.starts_with(&spec) && text.contains(form), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_generator_specification_is_taken_or_refused_in_words(rest in "(len|dst|src|vlan|x)=[0-9a-f:]{0,18}(,(len|dst|src|vlan|x)=[0-9a-f:]{0,18}){0,4}|.{0,60}") {
            if let Err(error) = super::super::open(&format!("gen:{rest}")).expect("gen is ours") {
                proptest::prop_assert!(error.to_string().contains("write it as gen:"));
            }
        }
    }
}
