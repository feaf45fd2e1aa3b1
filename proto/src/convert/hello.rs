//! Introductions.

use super::{WireError, model_from_wire, model_to_wire, required};
use crate::domain::{Hello, Identifier, OLDEST_PROTOCOL, PROTOCOL, Welcome};
use crate::text::{Shown, check_name};
use crate::v1;

/// The most tasks a worker may ask to have in flight.
const MAX_SLOTS: u32 = 64;

/// Puts an introduction on the wire.
pub fn hello_to_wire(hello: &Hello) -> v1::Hello {
    v1::Hello {
        name: hello.name.clone(),
        device: hello.device.clone(),
        slots: hello.slots,
        model: Some(model_to_wire(&hello.model)),
        protocol: PROTOCOL,
        instance: hello.instance.0.to_vec().into(),
        incarnation: hello.incarnation.map(|i| i.0.to_vec()).unwrap_or_default().into(),
        leases: hello.leases.clone(),
        version: hello.version.clone(),
    }
}

/// Reads an introduction. A version of the protocol that is not understood is the first thing to be refused.
pub fn hello_from_wire(hello: v1::Hello) -> Result<Hello, WireError> {
    if !(OLDEST_PROTOCOL..=PROTOCOL).contains(&hello.protocol) {
        let expected =
            "this coordinator takes versions 2 and 3: use a release of gigasmith that speaks one of them";
        return Err(WireError::invalid("protocol", hello.protocol, expected));
    }
    if !(1..=MAX_SLOTS).contains(&hello.slots) {
        return Err(WireError::invalid("slots", hello.slots, "give 1 to 64"));
    }
    let name = hello.name.trim();
    if check_name(name).is_err() {
        let expected = "a name has 1 to 128 bytes of visible characters, and is neither . nor ..";
        return Err(WireError::invalid("name", format!("{:?}", Shown(name).to_string()), expected));
    }
    Ok(Hello {
        name: name.to_owned(),
        device: Shown(&hello.device).to_string(),
        version: Shown(&hello.version).to_string(),
        slots: hello.slots,
        model: model_from_wire(required(hello.model, "model")?)?,
        instance: identifier(&hello.instance, "instance")?,
        incarnation: match &hello.incarnation[..] {
            [] => None,
            bytes => Some(identifier(bytes, "incarnation")?),
        },
        leases: hello.leases,
    })
}

/// Puts the answer on the wire.
pub fn welcome_to_wire(welcome: &Welcome) -> v1::Welcome {
    v1::Welcome {
        name: welcome.name.clone(),
        incarnation: welcome.incarnation.0.to_vec().into(),
        leases: welcome.leases.clone(),
    }
}

/// Reads the answer.
pub fn welcome_from_wire(welcome: v1::Welcome) -> Result<Welcome, WireError> {
    let incarnation = identifier(&welcome.incarnation, "incarnation")?;
    Ok(Welcome { name: welcome.name, incarnation, leases: welcome.leases })
}

fn identifier(bytes: &[u8], field: &'static str) -> Result<Identifier, WireError> {
    let bytes = bytes.try_into();
    bytes.map(Identifier).map_err(|_| WireError::invalid(field, "of another length", "it has 16 bytes"))
}
