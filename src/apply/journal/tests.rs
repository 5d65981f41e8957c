use super::*;
use std::io;

/// Names alone: every file is empty, and these were cut off while they were made or removed.
struct Names {
    there: Vec<&'static str>,
    unlinked: Vec<&'static str>,
}

impl Store for Names {
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.there.iter().map(|name| (*name).to_owned()).collect())
    }
    fn read(&self, _: &str, _: usize) -> io::Result<Option<Vec<u8>>> {
        Ok(None)
    }
    fn unlinked(&self, among: Vec<String>) -> Vec<String> {
        among.into_iter().filter(|name| self.unlinked.contains(&name.as_str())).collect()
    }
    fn make_room(&mut self, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn create(&mut self, name: &str, _: &[u8]) -> io::Result<()> {
        panic!("{name} is made before the clusters that are free are nobody's");
    }
    fn open(&self, _: &str) -> io::Result<Option<Box<dyn io::Read>>> {
        Ok(None)
    }
    fn create_from(&mut self, name: &str, _: &mut dyn io::Read) -> io::Result<u64> {
        panic!("{name} is made");
    }
    fn mark(&mut self, name: &str) -> io::Result<()> {
        panic!("{name} is made");
    }
    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.there.retain(|there| *there != name);
        Ok(())
    }
    fn shred(&mut self, name: &str) -> io::Result<()> {
        self.remove(name)
    }
    fn settle(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn left(there: &[&'static str], unlinked: &[&'static str]) -> (Vec<String>, Vec<String>) {
    let mut store = Names { there: there.to_vec(), unlinked: unlinked.to_vec() };
    let left = remove_unlinked(&mut store).unwrap();
    (left, store.names().unwrap())
}

#[test]
fn a_report_that_was_cut_off_stays_only_beside_what_stays() {
    const REQUEST: &str = "01234567.REQ";
    const JOURNAL: &str = "01234567.JNL";
    const REPORT: &str = "01234567.RPT";
    let all = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    assert_eq!(left(&[REPORT, REQUEST], &[REPORT]), (all(&[REPORT]), all(&[REPORT, REQUEST])));
    // In whatever order they are listed.
    assert_eq!(left(&[REPORT, REQUEST], &[REPORT, REQUEST]), (all(&[]), all(&[])));
    assert_eq!(left(&[JOURNAL, REPORT], &[JOURNAL, REPORT]), (all(&[]), all(&[])));
    let step = "01234567.S00";
    let there = [JOURNAL, REPORT, step];
    assert_eq!(left(&there, &there[..2]), (all(&there[..2]), all(&there)));
    // Progress that was cut off is none: it goes, and the next boot would not find it.
    let failure = "01234567.F00";
    assert_eq!(left(&[failure, JOURNAL], &[failure, JOURNAL]), (all(&[]), all(&[])));
}
