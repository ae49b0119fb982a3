package main
import ("testing";"time";"context")
func TestZZ(t *testing.T){
 for _, n := range []int{16} {
 h, done, err := newHostsBench(n, 64, time.Now)
 if err!=nil {t.Fatal(err)}
 defer done()
 s:=time.Now()
 f, err := h.run(context.Background())
 t.Logf("%+v %v %v", f, err, time.Since(s))
 }
}
