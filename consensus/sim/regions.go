package sim

// TenRegions are ten places of one cloud provider, with the round trips between them as such providers publish them,
// rounded to 5 ms where they are longer than that.
func TenRegions() *Regions {
	names := []string{
		"virginia", "oregon", "sao-paulo", "london", "frankfurt", "bahrain", "mumbai", "singapore", "tokyo", "sydney",
	}
	// Above the diagonal, in milliseconds there and back.
	round := [][]int64{
		{65, 115, 75, 90, 175, 190, 215, 150, 200},
		{175, 130, 145, 225, 220, 165, 100, 140},
		{185, 205, 290, 305, 325, 255, 310},
		{15, 105, 115, 170, 215, 265},
		{100, 120, 160, 225, 250},
		{40, 90, 165, 185},
		{60, 125, 150},
		{70, 90},
		{105},
	}
	const within = 1 // millisecond, in one region
	r := &Regions{Names: names}
	for range names {
		r.OneWay = append(r.OneWay, make([]int64, len(names)))
	}
	for i := range names {
		r.OneWay[i][i] = within * milli / 2
		for j := i + 1; j < len(names); j++ {
			r.OneWay[i][j] = round[i][j-i-1] * milli / 2
			r.OneWay[j][i] = r.OneWay[i][j]
		}
	}
	return r
}
