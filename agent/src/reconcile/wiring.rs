//! What the node is asked for, in an order that never lets a frame reach who should not have it.

use super::*;

impl Reconciler {
    /// Notes how long each driver took from what it asks for to asking.
    pub(super) fn learn_paces(&mut self, state: &HostState, now: Duration) {
        self.paces.retain(|subject, _| state.subjects.contains_key(subject));
        for (subject, keys) in &state.subjects {
            let seen = keys.seen();
            let first = || Pace { seen, since: now, slow: false };
            let pace = self.paces.entry(subject.clone()).or_insert_with(first);
            if pace.seen.info != seen.info {
                *pace = first();
            } else if pace.seen.action != seen.action {
                pace.slow = now.saturating_sub(pace.since) > self.timing.slow_driver;
                pace.seen = seen;
            }
        }
    }

    /// When to say `up`: a driver that was slow to ask may be slow to listen.
    fn up_offsets(&self, subject: &Subject) -> &[Duration] {
        match self.paces.get(subject) {
            Some(pace) if pace.slow => &self.timing.patient_up_offsets,
            _ => &self.timing.up_offsets,
        }
    }

    pub(super) fn unwires(&self, pass: &mut Pass) {
        let heirs: BTreeMap<Place, Subject> =
            pass.wires().map(|(subject, wiring)| (wiring.place(), subject.clone())).collect();
        let why = |place: &Place| Some((*place, self.why_unwire(*place, heirs.get(place), pass)?));
        let mut leaving: BTreeMap<Place, String> = pass.live.keys().filter_map(why).collect();
        for tap in pass.taps() {
            let ends = [tap.source, tap.service];
            let unwired = ends.into_iter().find(|vhost| !pass.live.contains_key(&Place::Vhost(*vhost)));
            let goes = ends.into_iter().find(|vhost| leaving.contains_key(&Place::Vhost(*vhost)));
            if let Some(vhost) = unwired.or(goes) {
                leaving
                    .entry(Place::Mirror(tap.mirror))
                    .or_insert_with(|| format!("vhost {vhost} at its end is unwired"));
            }
        }
        pass.leaving = leaving;
        for (place, why) in pass.leaving.clone() {
            // Whoever gets the vhost next must not get the tap with it.
            let tapped = matches!(place, Place::Vhost(vhost) if pass.taps().any(|tap| tap.uses(vhost)));
            if !tapped && self.may_try(place, None, pass) {
                pass.plan.actions.push(Action::Unwire { place, why });
            }
        }
    }

    /// Why what is wired here is to go; None if it stays, or is replaced in one step.
    fn why_unwire(&self, place: Place, heir: Option<&Subject>, pass: &Pass) -> Option<String> {
        let owner = self.owners.get(&place);
        if heir.is_some() && (heir == owner || owner.is_none()) {
            let as_wanted = || pass.wires().any(|(_, wiring)| pass.live.get(&place) == Some(&wiring));
            let turned = matches!(place, Place::Mirror(_)) && !as_wanted();
            return turned.then(|| "it is wanted elsewhere now".into());
        }
        match (heir, owner.and_then(|owner| pass.verdicts.get(owner))) {
            (_, Some(Verdict::Unplug)) => Some("asked to".into()),
            (Some(heir), _) => Some(format!("{heir} has it now")),
            (None, Some(Verdict::Keep(_))) => None,
            _ if self.protected(place, pass.state) => None,
            (None, Some(Verdict::Wire { .. })) => Some("its owner has another one now".into()),
            (None, Some(Verdict::Wait(why) | Verdict::Drop(why))) => Some(why.clone()),
            (None, None) => Some("nobody asks for it".into()),
        }
    }

    /// A place is taken over only once its last owner is unwired and no tap is left there; a port's
    /// own wiring changes in one step, a mirror's never does.
    pub(super) fn wires(&mut self, pass: &mut Pass) {
        let wires: Vec<(Subject, Wiring)> =
            pass.wires().map(|(subject, wiring)| (subject.clone(), wiring)).collect();
        for (subject, wiring) in wires {
            let place = wiring.place();
            let owner = self.owners.get(&place);
            if owner.is_some_and(|owner| *owner != subject) {
                continue;
            }
            if pass.live.get(&place) == Some(&wiring) {
                self.owners.insert(place, subject);
                continue;
            }
            let own = owner.is_some();
            let in_the_way = match &wiring {
                Wiring::Plug(plug) => pass.taps().any(|tap| {
                    let stays = own && !pass.leaving.contains_key(&Place::Mirror(tap.mirror));
                    tap.uses(plug.vhost) && !stays
                }),
                Wiring::Tap(tap) => {
                    pass.live.contains_key(&place)
                        || pass.leaving.keys().any(|p| matches!(p, Place::Vhost(vhost) if tap.uses(*vhost)))
                }
            };
            if !in_the_way && self.may_try(place, Some(wiring), pass) {
                pass.plan.actions.push(Action::Wire { subject, wiring });
            }
        }
    }

    /// `up` for everybody who is wired as asked, on its schedule; again if the key is not there.
    pub(super) fn ups(&mut self, pass: &mut Pass) {
        let mut announced = BTreeSet::new();
        for (subject, verdict) in &pass.verdicts {
            let Verdict::Wire { wirings, announce: true } = verdict else { continue };
            let live = |wiring: &Wiring| {
                let place = wiring.place();
                pass.live.get(&place) == Some(wiring)
                    && self.owners.get(&place) == Some(subject)
                    && !pass.leaving.contains_key(&place)
            };
            if !wirings.iter().all(live) {
                continue;
            }
            announced.insert(subject.clone());
            let keys = &pass.state.subjects[subject];
            let seen = keys.seen();
            let all_said_but_gone = |up: &UpSchedule| up.due().is_none() && keys.status != Some(true);
            let is_new = match self.ups.get(subject) {
                Some((of, up)) => *of != seen || all_said_but_gone(up),
                None => true,
            };
            if is_new {
                let start = UpSchedule::start(pass.now, self.up_offsets(subject));
                self.ups.insert(subject.clone(), (seen, start));
            }
            let awaited =
                |wiring: &Wiring| matches!(wiring, Wiring::Plug(plug) if self.awaited.contains(&plug.vhost));
            let up = &mut self.ups.get_mut(subject).expect("it was put there if it was not").1;
            if !wirings.iter().any(awaited) {
                up.guest_is_there();
            }
            let Some(due) = up.due() else { continue };
            if due > pass.now {
                pass.plan.wake(due);
                continue;
            }
            let slots: Vec<Key> =
                wirings.iter().filter_map(|wiring| self.shape.slot(wiring.place())).collect();
            let txn = KeyTxn::put_up(subject, &slots, keys.seen());
            pass.plan.actions.push(Action::PutUp { subject: subject.clone(), txn });
        }
        self.ups.retain(|subject, _| announced.contains(subject));
    }

    /// Unplug, second half: only when nothing is wired for it any more, and a port's only after
    /// those of its taps.
    pub(super) fn cleans(&self, pass: &mut Pass) {
        for (subject, verdict) in &pass.verdicts {
            if *verdict != Verdict::Unplug || self.wired_by(subject).next().is_some() {
                continue;
            }
            if matches!(subject, Subject::Port(port) if pass.state.is_tapped(port)) {
                continue;
            }
            let keys = &pass.state.subjects[subject];
            if !pass.any_wired(&keys.slots, &self.shape) {
                pass.plan.actions.push(clean(subject, keys, None));
            }
        }
    }
}
